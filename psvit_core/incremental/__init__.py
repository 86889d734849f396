"""Incremental execution: run the full model once, then only the nodes that pruning affects."""
