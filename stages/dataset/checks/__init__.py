"""Data contracts: conditions that the warehouse must meet before training."""
