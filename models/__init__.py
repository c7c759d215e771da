"""Learning: text in, float32 vectors out. This package knows nothing of Qdrant."""
