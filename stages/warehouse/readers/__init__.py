"""Readers of files: CSV, JSON lines, Parquet, lists of items."""
