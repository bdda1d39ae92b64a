"""Commands on recorded runs: `harness results ...`."""
