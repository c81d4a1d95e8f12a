"""A run as Prometheus series over HTTP, and how Prometheus finds it."""
