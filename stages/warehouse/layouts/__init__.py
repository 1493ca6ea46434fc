"""Public data sets whose files load without a mapping."""
