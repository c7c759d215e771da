"""The one seam to Qdrant: a client for the embedded engine or a server, and its failures."""
