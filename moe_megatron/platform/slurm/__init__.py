"""Batch jobs of SLURM: renders, submits, checks nodes, starts ranks on them, and judges attempts.

A job runs the same `pretrain_moe.py` with the same words as torchrun by hand. What a job decides,
it decides by the state of its run folder (`verdict`), never by the exit code of `srun`. This
package knows neither Megatron nor torch, so that a login node can use it.
"""
