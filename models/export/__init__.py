"""A bundle as other libraries read it."""
