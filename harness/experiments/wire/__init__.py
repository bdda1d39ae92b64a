"""Bytes on the wire in a step, by engine and ZeRO stage."""
