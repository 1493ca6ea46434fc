"""Candidate generation alone, by published protocols: see docs/benchmarks-retrieval.md."""
