"""What is measured about a run's routing and training, and where it is written.

`catalog` lists the metrics. `values` are plain values: the routing of one step or of many, loss,
speed. `sinks` deliver them to files and the console off the training thread, `history` keeps all
counts, `exporter` serves them to Prometheus. Nothing here imports torch or Megatron: numpy, rich
and the standard library are enough to read and draw a run.
"""
