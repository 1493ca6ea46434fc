"""Rankings of the held-out requests, made as the server would."""
