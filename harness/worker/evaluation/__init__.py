"""Scores a trained model on a test set, spread over the ranks."""
