"""Train, watch, tune and ship Mixture-of-Experts models on Megatron-Core.

The public names are imported when they are first used: importing this package loads neither torch
nor Megatron.
"""
