"""The selection of users, items and events, executed by the warehouse."""
