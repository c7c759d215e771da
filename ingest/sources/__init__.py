"""What `ingest prepare` reads: tables, JSON lines, BEIR folders, MS MARCO, docstrings."""
