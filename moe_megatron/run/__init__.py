"""One training run, from a configuration to its result; every way to train comes through here.

`start.start` runs on a rank, `launch.launch` starts the ranks of a machine.
"""
