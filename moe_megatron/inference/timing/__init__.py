"""How fast models decode, beside each other."""
