"""Whether a checkpoint still holds what was written, and which one of a folder to trust.

It knows files and checksums. It does not know Megatron, and never deletes what it finds damaged.
"""
