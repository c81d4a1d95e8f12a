"""Compares routers by training them: the bench of `moe-megatron bench`.

A bench is a set of cases (a router, its options, a number of experts) times seeds, each of which is
trained by `MoETrainer` in Megatron's loop and leaves one small file. Tables and a page are made of
these files alone. It knows no router by name but the one that others are compared with.
"""
