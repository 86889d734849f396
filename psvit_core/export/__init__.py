"""Writing pruned models to files that load anywhere and run nothing."""
