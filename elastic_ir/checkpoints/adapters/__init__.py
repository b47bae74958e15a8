"""Adapters of PEFT: read, matched with a base that was changed, carried over, written, verified. No torch here."""
