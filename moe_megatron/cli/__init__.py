"""The `moe-megatron` command: it parses, calls the package below and prints.

No decision about training is taken here.
"""
