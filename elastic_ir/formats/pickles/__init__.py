"""Pickles: modules and state dicts read from a list of allowed classes, and modules described without one."""
