"""The catalogue: which items stay, and which are copies of one another."""
