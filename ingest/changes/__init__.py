"""A collection as an object: made of DATA, then changed passage by passage."""
