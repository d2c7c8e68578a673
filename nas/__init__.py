"""The search of a trained supernet: which subnet is best within limits."""
