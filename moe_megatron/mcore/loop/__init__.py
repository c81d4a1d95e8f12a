"""Turns a configuration into a call of Megatron's `pretrain`, and follows its training loop."""
