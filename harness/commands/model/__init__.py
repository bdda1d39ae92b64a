"""Commands that use trained weights: `harness model ...`."""
