"""Background work: ``client`` (no torch), ``worker`` (the detached process), ``tasks`` (the work)."""
