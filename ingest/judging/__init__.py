"""Judgements that a language model makes: pooling, asking, agreement with people."""
