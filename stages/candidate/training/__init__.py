"""The step that trains the two towers, under torchrun."""
