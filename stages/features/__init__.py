"""Features and serving state: one implementation for training and for serving."""
