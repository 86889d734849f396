"""Model zoo: registry, model cards, families, checkpoints and pruned files."""
