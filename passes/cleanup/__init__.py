"""Passes that keep the function and remove what is computed for nothing."""
