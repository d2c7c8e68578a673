"""Flower's insides: everything that depends on how Flower works, and the in-process grid."""
