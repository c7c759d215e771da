"""PCA of document vectors, kept as plain arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from two_tower.models.errors import BundleError
from two_tower.models.vectors import FloatArray, normalized

MAX_FITTED = 200_000


@dataclass(frozen=True)
class Reduction:
    """A fitted PCA; a smaller dimension uses the first components of the largest.

    Attributes:
        mean: (dim,) float32, subtracted first.
        components: (largest, dim) float32, orthonormal rows by falling variance.
        dims: the widths to offer, largest first; may be empty.
    """

    mean: FloatArray
    components: FloatArray
    dims: tuple[int, ...]

    def apply(self, vectors: FloatArray) -> dict[int, FloatArray]:
        """Project (n, dim) to {d: (n, d) float32, L2-normalised} for each of `dims`."""
        if not self.dims:
            return {}
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise ValueError(f"vectors are {vectors.shape}, expected (n, {len(self.mean)})")
        projected = np.asarray((vectors - self.mean) @ self.components.T, np.float32)
        return {d: normalized(projected[:, :d]) for d in self.dims}

    def arrays(self) -> dict[str, FloatArray]:
        """Return what has to be stored beside `dims`."""
        return {"mean": self.mean, "components": self.components}

    @classmethod
    def of_arrays(cls, arrays: dict[str, FloatArray], dims: Sequence[int]) -> "Reduction":
        """Rebuild what `arrays` gave.

        Raises:
            BundleError: the arrays do not fit each other or `dims`.
        """
        mean, components = arrays.get("mean"), arrays.get("components")
        if mean is None or components is None or components.shape[1:] != mean.shape:
            raise BundleError("pca.safetensors lacks mean or components; train the bundle again")
        if len(components) < max(dims, default=0):
            raise BundleError(
                f"pca.safetensors has {len(components)} components, expected {max(dims)}; "
                "train the bundle again"
            )
        return cls(mean, components, tuple(dims))


def fit_reduction(vectors: FloatArray, dims: Sequence[int], *, seed: int = 0) -> Reduction:
    """Fit PCA (scikit-learn) to (n, dim) document vectors.

    Dims that are not below both n and dim are left out. Above 200,000 vectors a seeded sample is
    used.
    """
    possible = tuple(sorted({d for d in dims if d < min(vectors.shape)}, reverse=True))
    if not possible:
        return Reduction(vectors.mean(axis=0), np.zeros((0, vectors.shape[1]), np.float32), ())
    # scikit-learn is slow to import and is needed only here.
    from sklearn.decomposition import PCA

    if len(vectors) > MAX_FITTED:
        sample = np.random.default_rng(seed).choice(len(vectors), MAX_FITTED, replace=False)
        vectors = vectors[np.sort(sample)]
    with np.errstate(invalid="ignore"):  # equal vectors have no variance to share out
        pca = PCA(n_components=possible[0], svd_solver="covariance_eigh").fit(vectors)
    mean = np.ascontiguousarray(pca.mean_, dtype=np.float32)
    components = np.ascontiguousarray(pca.components_, dtype=np.float32)
    return Reduction(mean, components, possible)
