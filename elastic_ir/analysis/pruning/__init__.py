"""What pruning decides by: scores of weights, sparsities of layers, and the cost of sparse training."""
