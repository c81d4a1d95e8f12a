"""Training runs: from a configuration or a few lines of Python to Megatron's loop and back."""
