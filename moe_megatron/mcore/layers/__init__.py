"""The layers of our models in Megatron: Megatron's own specs plus the parts it lacks."""
