"""What the harness adds to a hand-written loop."""
