"""What duels say: the estimate and its interval, and duel.json read back as sentences and tables."""
