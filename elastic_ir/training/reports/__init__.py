"""Reports: what a study found, as tables, plots and text."""
