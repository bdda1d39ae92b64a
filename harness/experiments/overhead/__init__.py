"""`harness overhead`: what the harness adds to a hand-written loop."""
