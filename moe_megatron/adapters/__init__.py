"""Adapters as data: whole tensors of low rank by the place of their matrix, beside a model.

They are read from the checkpoint of a run or a folder in PEFT's format, written in that format,
merged into weights, and kept side by side on one `MoEModel`. How they are trained is not known
here: Megatron's side is in `mcore`.
"""
