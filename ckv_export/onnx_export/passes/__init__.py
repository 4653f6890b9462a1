"""Edits of an exported graph, one per file; each states what it requires and ensures."""
