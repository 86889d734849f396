"""The tasks that both the command line and the background worker run."""
