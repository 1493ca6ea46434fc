"""Protocols that split a data set once."""
