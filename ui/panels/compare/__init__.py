"""Panels of the Compare page: saved plans side by side, actions on one, differences of two."""
