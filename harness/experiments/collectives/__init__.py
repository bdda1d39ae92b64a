"""`harness comm`: what the network and each communication library can do."""
