"""One round: orders out, replies in, checked and folded."""
