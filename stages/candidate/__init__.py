"""The candidate generator: two-tower model, training, export, index, scorer."""
