"""Carries out a plan: workers, computed numbers, a journal, and one rename at the end."""
