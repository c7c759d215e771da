"""Text to token ids: subword vocabularies, and BM25's terms. Imports nothing above `models`."""
