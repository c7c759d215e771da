"""Queries that a language model writes for passages: drawing, asking, cleaning, the round trip."""
