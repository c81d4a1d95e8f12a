"""Routing and training facts of a run: what they are, and where they are written.

`catalog` is the list of metrics. `values` are plain values: one step's routing, a sum of steps,
loss, speed. `sinks` deliver them off the training thread to files and the console, `history` keeps
all counts, `exporter` serves them to Prometheus. Nothing in here knows torch or Megatron: numpy,
rich and the standard library suffice to read and draw a run.
"""
