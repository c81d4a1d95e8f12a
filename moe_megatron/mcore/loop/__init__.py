"""From a configuration to Megatron's `pretrain` and through its loop."""
