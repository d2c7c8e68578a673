"""A device: a subnet as a file that runs elsewhere."""
