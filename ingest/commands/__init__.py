"""The commands of `ingest`: flags, and what they print."""
