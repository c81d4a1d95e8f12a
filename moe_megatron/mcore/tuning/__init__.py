"""What of a model a run trains, in Megatron: frozen parameters, and learning rates of parts."""
