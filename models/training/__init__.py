"""A training run: its configuration, its loop, and its way from DATA to a bundle."""
