"""Commands that answer one question by measuring: `harness experiment ...`."""
