"""Weights and checkpoints: what goes into Megatron's model, and what comes out of it."""
