"""Serves a run as Prometheus series over HTTP, and tells Prometheus where to find it."""
