"""One training run on this machine, from a configuration to its result.

Every way to train comes through here: the command line, `torchrun pretrain_moe.py` and Python.
"""
