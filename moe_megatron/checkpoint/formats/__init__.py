"""The formats of both sides on disk, read as untrusted data.

They are Hugging Face folders and Megatron's `torch_dist` checkpoints, with element types, byte
ranges, and the files beside the tensors.
"""
