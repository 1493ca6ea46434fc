"""A synthetic world that knows the true preference of its users."""
