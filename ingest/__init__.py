"""The corpus side: labelled rows to a DATA folder, a DATA folder to a Qdrant collection."""
