"""Analyses: what can be known of a graph without changing it."""
