"""The heavy ranker: multi-task DCN-v2."""
