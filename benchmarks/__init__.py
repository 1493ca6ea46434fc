"""Benchmarks: one module each; the last printed line is one JSON object."""
