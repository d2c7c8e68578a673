"""The server's side: who trains what, how replies become the next supernet, what is recorded."""
