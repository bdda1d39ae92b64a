"""What watches a run: time by part of a step, processor, memory, network, GPUs, profiles."""
