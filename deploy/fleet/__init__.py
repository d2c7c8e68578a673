"""A fleet: a SuperLink and its nodes."""
