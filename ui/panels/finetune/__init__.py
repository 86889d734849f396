"""Panels of the Fine-tune page: settings of a run, its live curve, its result."""
