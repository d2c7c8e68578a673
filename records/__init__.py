"""Records of a run: its folder, its plans, and what is asked of it later."""
