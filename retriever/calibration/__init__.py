"""What the cosine is worth beside BM25 on one collection."""
