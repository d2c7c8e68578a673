"""From code and weights to something that runs on a machine, and is ended there."""
