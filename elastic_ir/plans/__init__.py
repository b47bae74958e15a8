"""Plans: which blocks a target has, and how a graph gets there."""
