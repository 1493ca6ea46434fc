"""Candidate generators beside the two-tower index, and how they are mixed."""
