"""Changes to a model on its way: fewer layers or experts, experts of dense layers."""
