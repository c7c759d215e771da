"""Collections that somebody else filled: read as they are, copied into ones that we search."""
