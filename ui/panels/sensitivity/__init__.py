"""Panels of the Sensitivity page: start a sweep, its heatmap, one channel group in detail."""
