"""Data contracts: what must hold of the warehouse before anything trains."""
