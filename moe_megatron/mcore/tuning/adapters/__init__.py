"""Low-rank adapters on Megatron's linear layers, under every layout.

A matrix W works as W + s B A (LoRA, arXiv:2106.09685). The tensors stand in a module of their own
beside the decoder, in a tree that has the names of whole models; a forward hook on each linear
layer adds what they compute, so that the base keeps its modules, its names and its checkpoints.
"""
