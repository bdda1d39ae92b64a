"""What is trained: the AnomalyGPT model, its data and its metrics. Knows nothing of engines, launchers or results."""
