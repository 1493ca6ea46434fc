"""The step that answers requests with candidates."""
