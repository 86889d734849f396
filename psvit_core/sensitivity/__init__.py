"""The sensitivity sweep: ``table`` (records from the store, no torch) and ``sweep`` (the run)."""
