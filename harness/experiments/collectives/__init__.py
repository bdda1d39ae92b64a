"""What the network and each communication library can do."""
