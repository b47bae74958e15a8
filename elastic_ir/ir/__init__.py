"""The intermediate representation: graph, structure, names, text, verifier."""
