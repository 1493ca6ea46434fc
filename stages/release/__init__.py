"""Releases: assemble, gate, register in MLflow, promote, pull."""
