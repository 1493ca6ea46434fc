"""The state and the features in plain Python: what the compiled ones must equal."""
