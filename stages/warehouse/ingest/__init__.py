"""From rows of a file to rows of the warehouse."""
