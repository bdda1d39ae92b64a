"""Horovod: ring all-reduce by a background thread."""
