"""One file = one run = one result."""
