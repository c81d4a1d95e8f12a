"""One training run, from a configuration to its result; every way to train goes through here.

`start.start` trains on one rank; `launch.launch` starts the ranks of a machine.
"""
