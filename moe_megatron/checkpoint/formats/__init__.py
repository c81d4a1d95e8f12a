"""What both sides look like on disk, read as data that a stranger wrote.

Hugging Face folders and Megatron's `torch_dist` checkpoints, types of elements, ranges of bytes,
and what lies beside the tensors.
"""
