"""Python source: a readable definition of a network."""
