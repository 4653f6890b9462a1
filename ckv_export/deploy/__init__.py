"""Bundles: made, published, rebuilt."""
