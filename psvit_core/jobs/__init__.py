"""Background work: ``client`` (no torch), ``worker`` (detached process), ``tasks`` (the work)."""
