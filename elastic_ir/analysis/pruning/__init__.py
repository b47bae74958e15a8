"""What pruning goes by: scores of weights, sparsities of layers, and what sparse training costs."""
