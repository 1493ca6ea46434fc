"""Metrics, baselines and the stage ledger."""
