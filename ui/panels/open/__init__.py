"""Panels of the Open page: choose a model, see what loading found, choose its images."""
