"""Pruning: the ways to make a mask."""
