"""Ten texts that tell whether a document encoder is still the one that a bundle was trained for."""

import numpy as np

from two_tower.models.errors import BundleError
from two_tower.models.vectors import FloatArray

PROBES = (
    "how long do cats live",
    "An indoor cat lives for twelve to fifteen years; some reach twenty.",
    "what is the boiling point of water at high altitude",
    "The treaty was signed in 1648 and ended thirty years of war in central Europe.",
    "def mean(values): return sum(values) / len(values)",
    "symptoms of iron deficiency in adults",
    "Shares fell by 3.2% after the company lowered its forecast for the third quarter.",
    "Die Bibliothek öffnet montags um neun Uhr.",
    "cheap flights to Lisbon in May",
    "A greyhound runs at seventy kilometres an hour, and rests for most of the day.",
)

LOWEST_COSINE = 0.999


def check_probes(stored: FloatArray, now: FloatArray, *, name: str) -> None:
    """Compare vectors of `PROBES`; what a quantised or remote encoder varies by is allowed.

    Args:
        stored: (10, dim) float32, L2-normalised, made when the bundle was trained.
        now: (10, dim) float32, L2-normalised, made by the encoder at hand.
        name: what the encoder is called.

    Raises:
        BundleError: the encoder gives other vectors than it did.
    """
    if stored.shape != now.shape:
        raise BundleError(
            f"{name} gives {now.shape} for ten probe texts, the bundle was trained with "
            f"{stored.shape}; open the bundle with the model that it names, or train it again"
        )
    if not (lowest := lowest_cosine(stored, now)) >= LOWEST_COSINE:
        raise BundleError(
            f"{name} is not as it was when the bundle was trained: the lowest cosine of ten probe "
            f"texts is {lowest:.4f}, expected at least {LOWEST_COSINE}; open the bundle with the "
            "model that it names, or train it again"
        )


def lowest_cosine(first: FloatArray, second: FloatArray) -> float:
    """Return the least cosine of n vectors with those in the same rows, (n, dim) float32 each."""
    return float(np.einsum("nd,nd->n", first, second).min())
