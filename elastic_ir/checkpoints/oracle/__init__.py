"""The network that a configuration builds: whether it takes what will be written, what the entries mean."""
