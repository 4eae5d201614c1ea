"""Continuous batching: requests share forward passes, and join and leave between steps."""
