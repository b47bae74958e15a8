"""Expressions of Python source, and their text."""
