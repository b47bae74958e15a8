"""The version, where every room may read it; ``pyproject.toml`` says the same, and a test holds it."""

__version__ = "0.1.0"
