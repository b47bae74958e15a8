"""Training checkpoints of torch.distributed as graphs, and written again at another depth."""
