"""The journal: what a run reports of itself."""
