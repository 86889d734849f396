"""Registry, model cards, families and checkpoints."""
