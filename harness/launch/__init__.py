"""The launching side of a run: checks, starts the launcher, watches, seals the record."""
