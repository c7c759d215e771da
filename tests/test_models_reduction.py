import numpy as np
import pytest
from sklearn.decomposition import PCA

from two_tower.models.bundle.reduction import Reduction, fit_reduction
from two_tower.models.errors import BundleError


@pytest.fixture
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    drawn = random.normal(size=(300, 12)) * np.linspace(3, 0.5, 12) + 0.3
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dim", [6, 3])
def test_reduction_is_scikit_learns_pca_normalised(vectors: np.ndarray, dim: int) -> None:
    expected = PCA(n_components=dim, svd_solver="full").fit_transform(vectors)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    reduced = fit_reduction(vectors, (3, 6)).apply(vectors)
    assert list(reduced) == [6, 3]
    assert reduced[dim].shape == (300, dim)
    assert reduced[dim].dtype == np.float32
    assert reduced[dim] == pytest.approx(expected, abs=1e-4)


def test_impossible_dims_are_left_out(vectors: np.ndarray) -> None:
    assert fit_reduction(vectors, (64, 32, 12, 8, 8)).dims == (8,)
    assert fit_reduction(vectors[:8], (8, 4)).dims == (4,)
    assert fit_reduction(vectors[:5], (64, 8, 4)).dims == (4,)
    nothing = fit_reduction(vectors[:1], (64, 32))
    assert nothing.dims == ()
    assert nothing.apply(vectors) == {}


def test_equal_vectors_reduce_to_valid_ones() -> None:
    same = np.tile(np.eye(6, dtype=np.float32)[:1], (20, 1))
    reduced = fit_reduction(same, (2,)).apply(same)[2]
    assert np.linalg.norm(reduced, axis=1) == pytest.approx(1)


def test_arrays_rebuild_a_reduction(vectors: np.ndarray) -> None:
    fitted = fit_reduction(vectors, (6, 3))
    again = Reduction.of_arrays(fitted.arrays(), [6, 3])
    assert np.array_equal(again.apply(vectors)[3], fitted.apply(vectors)[3])


def test_a_large_corpus_is_sampled_with_the_seed(
    vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("two_tower.models.bundle.reduction.MAX_FITTED", 100)
    first, again, other = (fit_reduction(vectors, (3,), seed=s) for s in (0, 0, 1))
    assert np.array_equal(first.mean, again.mean)
    assert not np.array_equal(first.mean, other.mean)


def test_wrong_shapes_are_refused(vectors: np.ndarray) -> None:
    fitted = fit_reduction(vectors, (3,))
    with pytest.raises(ValueError, match=r"\(300, 5\), expected \(n, 12\)"):
        fitted.apply(vectors[:, :5])
    with pytest.raises(BundleError, match="lacks mean or components"):
        Reduction.of_arrays({"mean": fitted.mean}, [3])
    with pytest.raises(BundleError, match="has 3 components, expected 5"):
        Reduction.of_arrays(fitted.arrays(), [5])
