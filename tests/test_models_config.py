import math
from dataclasses import field, replace
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from two_tower.models.config import configuration, flatten, from_mapping, with_values
from two_tower.models.errors import ConfigError
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.recipe import read_config, recipe_names
from two_tower.models.yaml_file import read_yaml


@configuration("inner")
class Inner:
    learning_rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    note: str | None = None
    size: int | None = Field(default=None, ge=1)
    share: float = Field(default=0.5, gt=0, lt=1)
    level: float = Field(default=0.0, ge=0, le=1)


@configuration("weights")
class Weights:
    scale: float = Field(allow_inf_nan=False)


@configuration()
class Outer:
    seed: int = 0
    on: bool = True
    dims: tuple[int, ...] = (2, 1)
    inner: Inner = field(default_factory=Inner)


def test_plain_values_become_dataclasses() -> None:
    values = {"seed": 3, "dims": [4], "inner": {"learning_rate": 1, "kind": "b", "note": "x"}}
    assert from_mapping(Outer, values) == Outer(3, True, (4,), Inner(1.0, "b", "x"))
    assert from_mapping(Outer, {}) == Outer()
    assert from_mapping(Outer, {"inner": {"note": None}}) == Outer()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sead": 1}, "unknown configuration key sead; did you mean seed?"),
        (
            {"inner": {"learning_rat": 1}},
            "unknown configuration key inner.learning_rat; did you mean inner.learning_rate?",
        ),
        ({"zzz": 1}, "unknown configuration key zzz; known: seed, on, dims, inner"),
        ({"seed": "three"}, "seed is 'three', expected int"),
        ({"seed": True}, "seed is True, expected int"),
        ({"seed": 1.5}, "seed is 1.5, expected int"),
        ({"on": 1}, "on is 1, expected bool"),
        ({"dims": 4}, "dims is 4, expected a list of integers"),
        ({"dims": ["x"]}, "dims is 'x', expected int"),
        ({"inner": 5}, "inner is 5, expected keys and values"),
        ({"inner": {"kind": "c"}}, "inner.kind is 'c', expected 'a' or 'b'"),
        ({"inner": {"learning_rate": "fast"}}, "inner.learning_rate is 'fast', expected float"),
        ({"inner": {"learning_rate": True}}, "inner.learning_rate is True, expected float"),
        ({"inner": {"note": 3}}, "inner.note is 3, expected str"),
        ({"inner": {"size": 0}}, "inner.size is 0, expected 1 or more"),
        ({"inner": {"share": 1.0}}, "inner.share is 1.0, expected between 0 and 1"),
        ({"inner": {"level": 1.5}}, "inner.level is 1.5, expected 0 to 1"),
    ],
)
def test_wrong_keys_and_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, values)
    assert str(caught.value) == message


def test_a_class_is_as_strict_as_a_file() -> None:
    for make in (lambda: Inner(size=0), lambda: replace(Inner(), size=0)):
        with pytest.raises(ConfigError, match=r"^inner\.size is 0, expected 1 or more$"):
            make()
    with pytest.raises(ConfigError, match=r"^inner\.kind is 'c', expected 'a' or 'b'$"):
        Inner(0.1, "c")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"did you mean inner\.share\?"):
        Inner(shore=0.5)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        Inner().size = 3  # type: ignore[misc]


def test_what_has_no_default_is_missed_and_what_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^weights\.scale is missing$"):
        from_mapping(Weights, {}, where="weights.")
    with pytest.raises(ConfigError, match=r"^weights\.scale is nan, expected a finite number$"):
        Weights(math.nan)
    with pytest.raises(ConfigError, match=r"^weights is \[\], expected keys and values$"):
        from_mapping(Weights, [], where="weights.")  # type: ignore[arg-type]


def test_flags_win_and_none_leaves_a_key_alone() -> None:
    base = {"seed": 1, "inner": {"kind": "b"}}
    merged = with_values(base, {"seed": None, "inner.learning_rate": 2.0, "tower.dim": 8})
    assert merged == {"seed": 1, "inner": {"kind": "b", "learning_rate": 2.0}, "tower": {"dim": 8}}
    assert base == {"seed": 1, "inner": {"kind": "b"}}
    assert flatten(merged)["inner.learning_rate"] == 2.0
    with pytest.raises(ConfigError, match="seed is 1, expected keys and values"):
        with_values(base, {"seed.x": 1})


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    with pytest.raises(ConfigError, match="no configuration file"):
        read_yaml(path)
    for content, message in (("a: [1", "as YAML"), ("- 1", "holds a list"), ("\xff", "as YAML")):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(ConfigError, match=message) as caught:
            read_yaml(path)
        assert "\n" not in str(caught.value)
    path.write_text("")
    assert read_yaml(path) == {}


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("labelled: {learning_rate: 5e-3}")
    assert read_config(str(path), {}).labelled.learning_rate == 0.005


def test_recipes_are_complete_configurations() -> None:
    names = ["endpoint", "fast", "genq", "light", "rnn", "taught", "transformer", "triplet"]
    assert recipe_names() == names
    assert read_config("fast", {"cross.epochs": 0}) == TrainConfig() == read_config(None, {})
    assert read_config("triplet", {}).labelled.loss == "triplet"
    assert read_config("triplet", {"labelled.epochs": 2}).labelled.epochs == 2
    assert read_config("rnn", {}).tower.kind == "gru"
    assert read_config("rnn", {}).pretrain == TrainConfig().pretrain
    with pytest.raises(ConfigError, match=r"no recipe is named 'fats'; .*: endpoint, fast, genq, "):
        read_config("fats", {})


def test_a_configuration_survives_plain_values() -> None:
    config = read_config("triplet", {"tower.shared": False, "pca_dims": [8]})
    assert from_mapping(TrainConfig, config.to_dict()) == config


@pytest.mark.parametrize(
    "flags",
    [
        {"seed": -1},
        {"dev_share": 1.0},
        {"pca_dims": [0]},
        {"labelled.batch_size": 1},
        {"labelled.epochs": -1},
        {"labelled.patience": -1},
        {"labelled.margin": 0.0},
        {"labelled.loss": "hinge"},
    ],
)
def test_impossible_values_are_refused(flags: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(flags)).replace(".", r"\.")):
        read_config(None, flags)
