"""`harness wire`: bytes on the wire in a step, by engine and ZeRO stage."""
