"""The commands of `retriever`: flags, and what they print."""
