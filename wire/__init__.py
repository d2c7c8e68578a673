"""The wire between server and node: the order, the flat array, the code's fingerprint."""
