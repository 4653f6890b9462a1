"""The models: a slow reference, and the split modules that are exported."""
