"""Compares both sides of a conversion: structure, checksums, every weight, and logits."""
