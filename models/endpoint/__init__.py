"""Services that answer as OpenAI's do: embeddings and language models, and a cache of answers."""
