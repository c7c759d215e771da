"""Bundles and archives from strangers: every claim of the threat model, tried by its own attack."""

import json
import os
import resource
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crossing import CONFIG as CROSS
from crossing import cross_bundle
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save
from test_security_hostile import plant

from two_tower.ingest.versions.snapshots import open_archive
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import (
    CARD,
    CONFIG,
    CROSS_SCORER,
    FUSION,
    PCA,
    TOKENIZER,
    TOWERS,
    digests,
)
from two_tower.models.errors import BundleError, DataError

__all__ = ["cross_bundle"]

FILES = (CARD, CONFIG, PCA, TOKENIZER, TOWERS)


@pytest.fixture
def bundle(tmp_path: Path, tiny_bundle: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def refused(bundle: Path, match: str = ".") -> None:
    with pytest.raises(BundleError, match=match) as failure:
        ModelBundle.load(bundle)
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 800


@pytest.mark.parametrize("name", FILES)
def test_a_link_that_leads_out_is_not_followed(bundle: Path, name: str) -> None:
    outside = bundle.parent / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    refused(bundle, "leads out of the folder")


@pytest.mark.parametrize("name", FILES)
def test_a_link_inside_is_followed(bundle: Path, name: str) -> None:
    (bundle / name).rename(bundle / "moved")
    (bundle / name).symlink_to("moved")
    assert ModelBundle.load(bundle).dim == 24


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "circle", "folder", "device", "socket"])
def test_what_is_no_plain_file_is_not_read(bundle: Path, name: str, kind: str) -> None:
    path = bundle / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, 0o600 | stat.S_IFSOCK)
    else:
        path.symlink_to("/dev/zero")
    refused(bundle, "cannot be read")


@pytest.mark.parametrize("name", [FUSION, CROSS_SCORER])
def test_an_extra_that_is_a_link_is_not_followed(bundle: Path, name: str) -> None:
    (bundle / name).symlink_to("/etc/passwd")
    refused(bundle, "cannot be read")


CONFIGS: dict[str, Any] = {
    "no object": [], "deep": None, "no tower": {"tower": None}, "a list": {"tower": []},
    "no kind": {"tower": {"shared": True}}, "kind": {"tower": {"kind": [], "shared": True}},
    "another kind": {"tower": {"kind": "quantum", "shared": True}},
    "dims in words": {"pca_dims": ["eight"]}, "negative dims": {"pca_dims": [-8]},
    "absurd dims": {"pca_dims": [10**12]}, "dims": {"pca_dims": 8}, "prefixes": {"prefixes": [1]},
    "prefix": {"prefixes": {"query": 1}}, "tokenizer": {"tokenizer": "x"}, "late": {"late": True},
    "late dims": {"late": {"dim": 10**9}}, "documents": {"documents": "x"},
    "no documents": {"documents": {}}, "vocabulary": {"tokenizer": {"vocab_size": -1}},
    "recurrent": {"tower": {"kind": "gru", "shared": True, "dim": 24,
                            "rnn": {"hidden": 100_000, "bidirectional": True}}},
}  # fmt: skip


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_of_another_form_is_refused(bundle: Path, what: str) -> None:
    config = json.loads((bundle / CONFIG).read_text())
    change = CONFIGS[what]
    content = json.dumps({**config, **change} if isinstance(change, dict) else change).encode()
    plant(bundle, CONFIG, b"[" * 100_000 if what == "deep" else content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(bundle)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("change", [{"cross": {"hidden": 7000}}, {"cross": {"dim": 10**6}}])
def test_the_size_of_a_cross_scorer_is_that_of_its_tensors(
    tmp_path: Path, cross_bundle: Path, change: dict[str, dict[str, int]]
) -> None:
    folder = shutil.copytree(cross_bundle, tmp_path / "bundle")
    fusion = json.loads((folder / FUSION).read_text())
    fusion["cross"] |= change["cross"]
    (folder / FUSION).write_text(json.dumps(fusion))
    card = json.loads((folder / CARD).read_text())
    card["extras"] |= digests({FUSION: (folder / FUSION).read_bytes()})
    (folder / CARD).write_text(json.dumps(card))
    opened = ModelBundle.load(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers, texts = np.ones(2, np.float32), (["a"], [["b", "c"]])
    if "dim" in change["cross"]:  # the vectors say how wide they are
        (found,) = opened.cross_scores(*texts, bm25=[numbers], cosine=[numbers])
        assert found.shape == (2,)
    else:
        with pytest.raises(BundleError, match="does not fit its configuration"):
            opened.cross_scores(*texts, bm25=[numbers], cosine=[numbers])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert CROSS.hidden == 4


@pytest.mark.parametrize("extras", [[], "x", {"../x": "y"}, {FUSION: 7}, {"card.json": "x"}])
def test_a_card_of_another_form_is_refused(bundle: Path, extras: Any) -> None:
    card = json.loads((bundle / CARD).read_text())
    (bundle / CARD).write_text(json.dumps({**card, "extras": extras}))
    if extras:
        refused(bundle)


@pytest.mark.parametrize("name", [TOWERS, PCA])
@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.float16])
def test_numbers_of_another_type_are_refused(bundle: Path, name: str, dtype: Any) -> None:
    plant(bundle, name, save({"query.vectors": np.zeros((4, 4), dtype)}))
    refused(bundle)


@pytest.mark.parametrize("number", [1e7, -1e7, 3e38, np.inf, np.nan])
@pytest.mark.parametrize("name", [TOWERS, PCA])
def test_absurd_numbers_are_refused(bundle: Path, name: str, number: float) -> None:
    arrays = load_arrays((bundle / name).read_bytes())
    first = next(iter(arrays))
    arrays[first] = arrays[first].copy()
    arrays[first].flat[0] = number
    plant(bundle, name, save(arrays))
    refused(bundle, "holds numbers that are not finite float32 of at most")


@pytest.mark.parametrize("where", ["extras", "kind"])
def test_a_long_name_is_cut(bundle: Path, where: str) -> None:
    if where == "extras":
        card = json.loads((bundle / CARD).read_text())
        (bundle / CARD).write_text(json.dumps({**card, "extras": {"a" * 100_000: "x"}}))
    else:
        config = json.loads((bundle / CONFIG).read_text())
        tower = {**config["tower"], "kind": "a" * 100_000}
        plant(bundle, CONFIG, json.dumps({**config, "tower": tower}).encode())
    refused(bundle)


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def lying(path: Path, size: int) -> Path:
    """An archive whose directory says that an entry unpacks to `size` bytes."""
    manifest = {
        "format": "two-tower-search-snapshot/1", "collection": "c--12345678", "points": 1,
        "embedded": True, "engine_version": "1", "created_at": "2026-11-29T00:00:00+00:00",
        "metadata": {}, "files": [{"name": "x", "size": size, "sha256": "0" * 64}],
    }  # fmt: skip
    zipped(path, {"x": b"\0" * 1000, "manifest.json": json.dumps(manifest).encode()})
    content = path.read_bytes()
    content = content.replace(
        (1000).to_bytes(4, "little"), min(size, 2**32 - 2).to_bytes(4, "little")
    )
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size", [10**9, 2**32 - 2, 10**15])
def test_an_archive_does_not_unpack_without_bound(tmp_path: Path, size: int) -> None:
    path = lying(tmp_path / "a.zip", size)
    with pytest.raises(DataError, match="is no complete archive"), open_archive(path):
        pass
