"""DATA to a collection: what differs, points, sending, verifying."""
