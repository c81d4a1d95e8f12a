"""Harms a small training on purpose, again and again, and checks that nothing of it remains.

A campaign trains a small model on a few processes of this machine, hits it at random moments
(kills, stops, damaged checkpoints, full disks, bad numbers, floods), and compares its end with a
training that nobody touched. It knows the job from outside, as a batch system does: processes,
files and the journal. One kind of harm is one file in `harms/`.
"""
