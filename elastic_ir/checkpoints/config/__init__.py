"""Configurations of checkpoints: what counts, names and chooses layers, and whether the written one fits."""
