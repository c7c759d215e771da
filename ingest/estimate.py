"""How large a collection will be."""
def estimate(*a, **k):
    return ""
