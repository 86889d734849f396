"""Results on disk: the ``store``, per-image ``predictions``, and ``shipped`` results."""
