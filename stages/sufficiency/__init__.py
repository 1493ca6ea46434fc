"""How much data is enough: the traffic that a selection would have covered, and when more data stops helping."""
