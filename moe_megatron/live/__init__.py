"""Drawings that are replaced where they stand: on a terminal, or in the output of a notebook."""
