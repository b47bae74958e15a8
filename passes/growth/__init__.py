"""Passes that grow a network, or let it start well."""
