"""Routing and training facts of a run as plain values, and where they are written.

`snapshot` (one step), `profile` (a sum of steps), `records` (loss, speed, evaluation) are values;
`sink` delivers them off the training thread to `jsonl` files and the `console`. Nothing in here
knows torch or Megatron: numpy, rich and the standard library suffice to read and draw a run.
"""
