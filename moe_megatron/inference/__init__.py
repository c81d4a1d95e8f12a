"""Running models: experts that are read when they are needed, and what decides which stay."""
