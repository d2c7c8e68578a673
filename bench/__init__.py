"""Measures of ``superfednas bench``: every figure is a ratio to something of the same call."""
