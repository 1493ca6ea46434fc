"""Turn rows of a file into rows of the warehouse."""
