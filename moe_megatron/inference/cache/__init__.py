"""Which experts stay in memory: policies, traces of what was needed, and both together."""
