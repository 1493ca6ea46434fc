"""From raw events to a snapshot: active users, de-duplication, splits, requests."""
