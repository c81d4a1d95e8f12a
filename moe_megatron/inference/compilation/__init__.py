"""Compiled models: what goes in, what comes out, and whether it computes the same."""
