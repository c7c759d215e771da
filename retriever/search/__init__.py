"""The way of a query: settings, candidates, fusion, rerank, cross-scorer, hits."""
