"""Panels of the Tune page: budget and policies, the equalizer, its table, measurements."""
