"""Sensitivity sweeps: ``spec`` (definition and table, without torch) and ``sweep`` (the run)."""
