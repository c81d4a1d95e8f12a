"""Executes a plan: workers, computed tensors, a journal, and one rename at the end."""
