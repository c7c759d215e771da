"""Versions of a collection: promote, roll back, copy, snapshot, restore."""
