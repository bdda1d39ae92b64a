"""Checks across engines: equal weights, bytes exchanged."""
