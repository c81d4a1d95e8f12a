"""Training from a few lines of Python."""
