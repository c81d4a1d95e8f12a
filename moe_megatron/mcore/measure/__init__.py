"""Measures each step on the devices and brings the numbers to rank 0."""
