"""The two-tower model: encoders, losses and tables."""
