"""The `moe-megatron` command: parses arguments, calls the packages below it and prints.

It makes no decisions about training.
"""
