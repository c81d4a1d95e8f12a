"""Evaluation of tasks inside a run, through Megatron's own loop over micro-batches."""
