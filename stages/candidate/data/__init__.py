"""Training examples, and what the towers know of items."""
