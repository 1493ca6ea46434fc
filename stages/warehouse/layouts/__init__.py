"""Public data sets whose files are known."""
