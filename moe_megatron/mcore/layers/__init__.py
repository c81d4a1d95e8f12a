"""The layers of our models in Megatron: its own specs, with the parts that it lacks."""
