"""Reading a graph for the writer of Python source."""
