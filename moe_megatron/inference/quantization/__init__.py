"""Experts in fewer bits: how they are rounded, where they are written, and how they compute."""
