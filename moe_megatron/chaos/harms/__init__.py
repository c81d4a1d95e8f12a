"""The harms, one kind a file; adding a file adds its harms."""
