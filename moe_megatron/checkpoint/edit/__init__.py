"""Changes to a model during its import: fewer layers or experts, or experts from dense layers."""
