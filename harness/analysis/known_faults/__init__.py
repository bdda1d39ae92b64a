"""Faults of measurement that were found in this program: how a record shows each, and the mark of a superseded one."""
