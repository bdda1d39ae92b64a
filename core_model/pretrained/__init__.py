"""Pretrained weights: parts by name, where they come from, how their keys are mapped."""
