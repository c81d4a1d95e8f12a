"""What only tests import: real distributed runs of tiny models."""
