"""Front ends: one file for each form of input; each makes a Graph."""
