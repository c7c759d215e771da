"""A trained model on disk: save, load, fingerprint, and encoding without torch."""
