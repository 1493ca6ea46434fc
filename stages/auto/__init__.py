"""Settings that follow from the data: what ``auto`` chooses, and why; see docs/recipes.md."""
