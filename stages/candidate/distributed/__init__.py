"""Sharding, training state and exchanges between ranks."""
