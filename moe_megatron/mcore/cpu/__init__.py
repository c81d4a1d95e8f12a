"""Megatron on a machine without CUDA: what it needs to run, and what makes it faster."""
