"""The libraries of classes that folders are of: whose a configuration is, and the network that it builds."""
