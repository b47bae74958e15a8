"""Passes about masks."""
