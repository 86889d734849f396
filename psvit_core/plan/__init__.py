"""Prune plans: built from ratios (``build``), sized (``size``) and shared as links (``link``)."""
