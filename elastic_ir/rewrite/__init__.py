"""Rewriting: the only code that edits a graph."""
