"""Fine-tuning: from weights to weights, by runs of the one loop that keep most of a model."""
