"""What is asked of a trained supernet: which subnets to look at, and how good they are."""
