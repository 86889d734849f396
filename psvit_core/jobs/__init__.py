"""Background work: ``client`` and ``queue`` (no torch), the detached ``worker``, and ``run``."""
