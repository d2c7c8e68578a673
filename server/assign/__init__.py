"""Assignment: which client trains which subnet."""
