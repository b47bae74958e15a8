"""Tensors: what a weight is made of: lazy data, masks, recipes, and the bridge to torch."""
