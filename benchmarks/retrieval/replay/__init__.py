"""Protocols that replay a log of clicks."""
