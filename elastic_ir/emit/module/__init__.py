"""Modules: the source's own class with re-filled containers."""
