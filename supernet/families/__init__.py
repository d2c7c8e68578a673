"""The families of networks, one folder each."""
