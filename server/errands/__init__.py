"""Errands: what nodes are asked besides training."""
