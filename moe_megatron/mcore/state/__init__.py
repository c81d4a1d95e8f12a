"""Weights and checkpoints, to and from Megatron's model."""
