"""How frozen parts are run: storage type, CUDA graphs, torch.compile; the FLOPs they need."""
