"""The AnomalyGPT model: decoder, prompt learner, projection, memory bank, losses."""
