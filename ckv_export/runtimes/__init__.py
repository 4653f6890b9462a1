"""Runtimes behind one face: activate, infer, metadata."""
