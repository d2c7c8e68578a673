"""Engines: exact search, evolution, and the choice between them."""
