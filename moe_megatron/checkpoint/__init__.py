"""Checkpoints between Hugging Face and Megatron, as plans of byte ranges.

A family's table says where each tensor lies on the other side (`families`); a plan turns
that into ranges of files and proves it complete; executing the plan needs no model, no GPU, no
process group and a constant amount of memory. `convert` is the way in.
"""
