"""The worker: a node's long-lived process that holds torch and the data."""
