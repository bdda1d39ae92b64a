"""Plain PyTorch engines: a single process, DistributedDataParallel, FSDP2."""
