"""Bundles and DATA from strangers: nothing in them is executed, or read from elsewhere."""

import base64
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_passages, write_data
from typer.testing import CliRunner

from two_tower.ingest.cli import app as ingest_app
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import CARD, CONFIG, PCA, TOWERS, digests, fingerprint
from two_tower.models.data import Dataset
from two_tower.models.errors import BundleError, TwoTowerError
from two_tower.retriever.search.settings import read_settings


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a bomb would make; the fixture checks the bomb, and that none went off."""
    path = tmp_path / "mark"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    return path


@pytest.fixture
def bundle(tmp_path: Path, tiny_bundle: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def plant(bundle: Path, name: str, content: bytes) -> None:
    """Put a file into a bundle and seal it as its maker would."""
    (bundle / name).write_bytes(content)
    card = json.loads((bundle / CARD).read_text())
    deciding = {p.name: p.read_bytes() for p in bundle.iterdir() if p.name != CARD}
    (bundle / CARD).write_text(json.dumps({**card, "fingerprint": fingerprint(deciding)}))


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("name", [TOWERS, PCA, CONFIG, "tokenizer.model"])
def test_a_pickle_in_a_bundle_is_not_opened(bundle: Path, mark: Path, name: str) -> None:
    plant(bundle, name, pickle.dumps(Bomb(mark)))
    with pytest.raises(BundleError) as failure:
        ModelBundle.load(bundle)
    assert "\n" not in str(failure.value)
    assert not mark.exists()


def test_a_pickled_array_in_a_bundle_is_not_opened(bundle: Path, mark: Path) -> None:
    np.save(bundle / "x.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    content = (bundle / "x.npy").read_bytes()
    (bundle / "x.npy").unlink()
    plant(bundle, TOWERS, content)
    with pytest.raises(BundleError):
        ModelBundle.load(bundle)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (2**31).to_bytes(8, "little") + b"{}",
        header(b'{"query.vectors":{"dtype":"F32","shape":[1099511627776,1099511627776],'
               b'"data_offsets":[0,4]}}') + b"\0\0\0\0",
        header(b'{"query.vectors":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000]}}'),
        header(b"[" * 100_000),
    ],
    ids=["header-of-exabytes", "header-of-gigabytes", "shape", "offsets", "depth"],
)  # fmt: skip
def test_absurd_sizes_in_a_bundle_are_refused(bundle: Path, content: bytes) -> None:
    plant(bundle, TOWERS, content)
    with pytest.raises(BundleError, match="safetensors is broken"):
        ModelBundle.load(bundle)


def test_a_card_cannot_name_files_elsewhere(bundle: Path) -> None:
    secret = bundle.parent / "secret"
    secret.write_text("not for a bundle")
    card = json.loads((bundle / CARD).read_text())
    for name in ("../secret", str(secret)):
        card["extras"] = {name: digests({name: secret.read_bytes()})[name]}
        (bundle / CARD).write_text(json.dumps(card))
        with pytest.raises(BundleError, match=r"names .*secret"):
            ModelBundle.load(bundle)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system"])
def test_yaml_tags_are_not_followed(tmp_path: Path, mark: Path, tag: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"search: {tag} ['touch {mark}']\n")
    with pytest.raises(TwoTowerError):
        read_settings(file)
    assert not mark.exists()


def columns_of(data: Path) -> pa.Table:
    return pq.read_table(data / "passages.parquet")


class Pickled(pa.ExtensionType):
    """A type whose description, read the old way, is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark
        super().__init__(pa.string(), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return pickle.dumps(Bomb(self._mark))

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Pickled":
        raise NotImplementedError


def test_a_pickled_type_in_data_is_not_opened(tmp_path: Path, mark: Path) -> None:
    data = write_data(tmp_path / "DATA", make_passages(5)).path
    table = columns_of(data)
    place = table.schema.get_field_index("text")
    text = pa.ExtensionArray.from_storage(
        Pickled(mark), table.column("text").combine_chunks().cast(pa.string())
    )
    pq.write_table(table.set_column(place, "text", text), data / "passages.parquet")
    stored = pq.ParquetFile(data / "passages.parquet").metadata.metadata[b"ARROW:schema"]
    assert b"mark" in base64.b64decode(stored)  # the pickle is in there
    assert [p.text for p in Dataset.open(data).passages()] == [p.text for p in make_passages(5)]
    assert not mark.exists()


@pytest.mark.parametrize(
    "odd",
    [pa.array([1, 2, 3]), pa.array([[1], [2], [3]]), pa.array([b"a", b"b", b"c"]),
     pa.array(["a", "b", "c"]).dictionary_encode()],
    ids=lambda array: str(array.type)[:12],
)  # fmt: skip
def test_columns_of_another_type_are_refused(
    tmp_path: Path, tiny_bundle: Path, odd: pa.Array
) -> None:
    data = write_data(tmp_path / "DATA", make_passages(3)).path
    table = columns_of(data)
    place = table.schema.get_field_index("text")
    pq.write_table(table.set_column(place, "text", odd), data / "passages.parquet")
    words = ["load", data, "--bundle", tiny_bundle, "--collection", "c", "--path", tmp_path / "e"]
    done = CliRunner().invoke(ingest_app, [str(word) for word in words])
    assert done.exit_code == 1
    assert "passages.parquet has columns" in done.stderr
    assert "Traceback" not in done.stderr
