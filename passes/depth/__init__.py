"""Passes that change how many units a network has."""
