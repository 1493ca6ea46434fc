"""Duplicates and blocked items of the catalogue."""
