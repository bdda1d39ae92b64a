"""What several engines share: the optimization step, its parts, the fp16 loss scale, checkpoint files."""
