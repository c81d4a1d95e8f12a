"""What fits into a memory how, and how fast it would decode here."""
