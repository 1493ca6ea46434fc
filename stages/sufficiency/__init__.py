"""How much data is enough: what a selection would have covered, and when more data stops paying."""
