import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from qdrant_client import models as qm

from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.options import (
    CollectionOptions,
    DiskOptions,
    HnswOptions,
    QuantizationOptions,
)
from two_tower.retriever.search.abilities import require_possible
from two_tower.retriever.search.settings import (
    AnnSettings,
    SearchSettings,
    SettingsFile,
    read_file,
    read_settings,
)

WHOLE = """
collection:
  distance: dot
  datatype: float16
  hnsw: {m: 24, ef_construct: 200, above_kb: 5000}
  quantization: {kind: binary, bits: 1.5, always_ram: false}
  on_disk: {vectors: true, payload: false, bm25: true}
  shards: 6
  replicas: 3
  write_consistency: 2
  clusters: 64
  indexes: {body: text, serial: none}
search:
  legs: {dense: 50, bm25: 30}
  fusion: rrf
  ann: {ef: 64, first_stage: pca_8, first_stage_candidates: 300, n_probe: 4, oversampling: 2}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    found = read_file(write(tmp_path, WHOLE))
    options = found.collection
    assert (options.distance, options.datatype, options.clusters) == ("dot", "float16", 64)
    assert (options.hnsw.m, options.hnsw.ef_construct, options.hnsw.above_kb) == (24, 200, 5000)
    assert options.quantization == QuantizationOptions("binary", 1.5, always_ram=False)
    assert options.on_disk == DiskOptions(vectors=True, payload=False, bm25=True)
    assert (options.shards, options.replicas, options.write_consistency) == (6, 3, 2)
    assert options.indexes == {"body": "text", "serial": "none"}
    assert found.search == SearchSettings(
        legs={"dense": 50, "bm25": 30},
        fusion="rrf",
        ann=AnnSettings(
            ef=64, first_stage="pca_8", first_stage_candidates=300, n_probe=4, oversampling=2.0
        ),
    )
    assert read_settings(tmp_path / "settings.yaml") == found.search


def test_what_a_file_leaves_out_is_the_default(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, "")) == SettingsFile()
    assert read_file(write(tmp_path, "search: {group_size: 2}")).collection == (CollectionOptions())


def test_options_survive_the_metadata(tmp_path: Path) -> None:
    options = read_file(write(tmp_path, WHOLE)).collection
    assert CollectionOptions.from_dict(options.to_dict()) == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("serch: {}", "unknown configuration key serch; did you mean search?"),
        ("collection: {quantisation: {}}", "did you mean collection.quantization?"),
        ("collection: {hnsw: {ef_constuct: 1}}", "did you mean collection.hnsw.ef_construct?"),
        ("search: {ann: {nprobe: 1}}", "did you mean search.ann.n_probe?"),
        ("collection: {distance: euclid}", "expected cosine or dot .vectors have length 1"),
        ("collection: {hnsw: {m: 1}}", "collection.hnsw.m is 1, expected 2 to 256, or 0"),
        ("collection: {datatype: int8}", "collection.datatype is 'int8', expected 'float32'"),
        ("collection: {hnsw: {ef_construct: 3}}", "hnsw.ef_construct is 3, expected 4 to 10000"),
        ("collection: {hnsw: {above_kb: 9}}", "hnsw.above_kb is 9, expected 10 to"),
        ("collection: {quantization: {kind: int4}}", "'none' or 'scalar' or 'binary'"),
        ("collection: {quantization: {kind: binary, bits: 3}}", "expected 1, 1.5 or 2"),
        ("collection: {quantization: {kind: scalar, bits: 2}}", "it is for kind: binary"),
        ("collection: {clusters: 1}", "clusters is 1, expected 0 or 2 to 1024"),
        ("collection: {clusters: 2000}", "clusters is 2000, expected 0 or 2 to 1024"),
        ("collection: {shards: 0}", "collection.shards is 0, expected 1 to 1000"),
        ("collection: {replicas: 2, write_consistency: 3}", "3 of 2 replicas; no write could"),
        ("collection: {indexes: {body: geo}}", "collection.indexes.body is 'geo', expected"),
        ("collection: {indexes: [body]}", "collection.indexes is .'body'., expected keys"),
        ("search: {legs: {dense: many}}", "search.legs.dense is 'many', expected int"),
        ("search: {legs: {}}", "name no leg"),
        ("search: {ann: {ef: 0}}", "search.ann.ef is 0, expected 1 or more"),
        ("search: {ann: {n_probe: -1}}", "search.ann.n_probe is -1, expected 1 or more"),
        ("search: {ann: {first_stage: dense}}", "expected e.g. pca_64"),
        ("search: {ann: {oversampling: 2, rescore: false}}", "oversampling is 2.0 without rescore"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HnswOptions(m=1), "collection.hnsw.m is 1, expected 2 to 256"),
        (lambda: HnswOptions(m=8.5), "collection.hnsw.m is 8.5, expected int"),  # type: ignore[arg-type]
        (
            lambda: QuantizationOptions("binary", 3.0),
            "quantization.bits is 3.0, expected 1",
        ),
        (lambda: DiskOptions(vectors=1), "on_disk.vectors is 1, expected bool"),  # type: ignore[arg-type]
        (lambda: CollectionOptions(replicas=0), "collection.replicas is 0, expected 1 to 1000"),
        (lambda: replace(CollectionOptions(), shards=2000), "shards is 2000, expected 1 to 1000"),
    ],
)
def test_options_made_in_python_are_checked_alike(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file at .*nowhere"):
        read_file(tmp_path / "nowhere")


def test_one_bit_more_is_another_encoding() -> None:
    encodings = [
        QuantizationOptions("binary", bits).config.binary.encoding  # type: ignore[union-attr]
        for bits in (1.0, 1.5, 2.0)
    ]
    names = qm.BinaryQuantizationEncoding
    assert encodings == [names.ONE_BIT, names.ONE_AND_HALF_BITS, names.TWO_BITS]
    assert QuantizationOptions().config is None


@pytest.mark.parametrize("kind", ["binary", "scalar", "none"])
def test_scores_of_binary_copies_are_not_added_to_bm25(kind: Literal["binary", "scalar"]) -> None:
    options = CollectionOptions(quantization=QuantizationOptions(kind=kind))
    raw = SearchSettings(ann=AnnSettings(rescore=False))
    for settings in (
        replace(raw, legs={"dense": 100}),
        replace(raw, ann=AnnSettings(rescore=False, ignore_quantized=True)),
        SearchSettings(),
    ):
        require_possible(settings, [8], options)
    if kind != "binary":
        require_possible(raw, [8], options)
        return
    with pytest.raises(ConfigError, match="no cosines and cannot be added to BM25"):
        require_possible(raw, [8], options)
