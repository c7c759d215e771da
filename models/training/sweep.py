"""Many training runs over a space of settings: a grid, or seeded random search.

    DIR/<trial>       a bundle, as `models train` makes it, its run folder beside it
    DIR/sweep.json    the trials so far, best first
    DIR/sweep.md      the same as a table

A trial's name is a hash of its whole configuration and data, so that the same sweep goes on where
it stopped, and a changed one keeps what still fits.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import read_card
from two_tower.models.config import flatten, from_mapping, read_yaml, with_values
from two_tower.models.data import Dataset
from two_tower.models.errors import BundleError, ConfigError, TrainingError
from two_tower.models.files import write_bytes, write_json
from two_tower.models.text.bm25 import Analyzer
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.run import RunOptions, train_bundle

METRICS = ("recall@1", "recall@3", "recall@10", "recall@100", "mrr@10")

DRAWS_PER_TRIAL = 100

Values = dict[str, Any]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Range:
    """Numbers from `min` to `max`, whole ones if both ends are; `log` draws their logarithms."""

    min: float
    max: float
    log: bool = False
    whole: bool = False

    def draw(self, rng: np.random.Generator) -> float | int:
        """Return a number of the range, rounded to four digits."""
        ends = (math.log(self.min), math.log(self.max)) if self.log else (self.min, self.max)
        drawn = float(rng.uniform(*ends))
        number = float(f"{math.exp(drawn) if self.log else drawn:.4g}")
        inside = min(max(number, self.min), self.max)
        return round(inside) if self.whole else inside


Space = Mapping[str, list[Any] | Range]


class Trial(NamedTuple):
    """One training run of a sweep.

    Attributes:
        name: of its bundle in the sweep's folder.
        values: dotted key -> value, what it sets.
        config: all of its configuration.
    """

    name: str
    values: Values
    config: TrainConfig


class Outcome(NamedTuple):
    """What became of a trial: metrics on dev, or why it failed.

    Attributes:
        trial: its name.
        values: what it set.
        metrics: of the full vectors on dev; empty if it failed.
        seconds: of its training.
        failure: one line; empty if it went well.
    """

    trial: str
    values: Values
    metrics: dict[str, float]
    seconds: float = 0.0
    failure: str = ""


def read_space(path: Path) -> dict[str, list[Any] | Range]:
    """Read a YAML file of dotted keys, each with a list of values or {min, max, log}.

    Raises:
        ConfigError: the file is not that.
    """
    space = {str(key): _values(f"{path}: {key}", value) for key, value in read_yaml(path).items()}
    if not space:
        raise ConfigError(f"{path} is empty, expected keys such as labelled.temperature: [0.03]")
    return space


def plan(
    base: Mapping[str, Any], space: Space, *, trials: int, seed: int, content_hash: str
) -> list[Trial]:
    """Choose the trials: the grid where the space is lists and the grid not above `trials`.

    Otherwise `trials` different random draws; a larger number begins with the same ones.

    Args:
        base: the configuration that the trials change, as plain values.
        space: what to try.
        trials: at most so many.
        seed: of the draws.
        content_hash: of DATA, part of a trial's name.

    Raises:
        ConfigError: a key is unknown or a value impossible.
    """
    if trials < 1:
        raise ConfigError(f"trials is {trials}, expected 1 or more")
    for key, values in space.items():
        for value in values if isinstance(values, list) else (values.min, values.max):
            from_mapping(TrainConfig, with_values(base, {key: _end(values, value)}))
    chosen = _grid(space, trials) or _draws(space, trials=trials, seed=seed)
    return [_trial(base, values, content_hash) for values in chosen]


def run_sweep(
    data: Dataset,
    folder: Path,
    trials: Sequence[Trial],
    *,
    metric: str = "recall@10",
    analyzer: Analyzer,
    options: RunOptions,
    say: Say,
) -> list[Outcome]:
    """Train all trials that are not done, and return them all, best first.

    A trial that cannot be trained (collapse) is kept with its reason, and the others go on.

    Raises:
        ConfigError: there is no such metric.
    """
    check_metric(metric)
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for number, trial in enumerate(trials, 1):
        shown = " ".join(f"{key}={value}" for key, value in trial.values.items())
        say(f"trial {number}/{len(trials)} {trial.name}: {shown}")
        train = partial(train_bundle, data, folder / trial.name, analyzer=analyzer, say=say)
        outcomes.append(_outcome(folder / trial.name, trial, train, options=options, say=say))
        outcomes.sort(key=lambda outcome: -outcome.metrics.get(metric, -1.0))
        plain = [outcome._asdict() for outcome in outcomes]
        write_json(folder / "sweep.json", {"metric": metric, "trials": plain})
        write_bytes(folder / "sweep.md", f"{to_markdown(outcomes)}\n".encode())
    return outcomes


def check_metric(metric: str) -> None:
    """Refuse a metric that dev does not have.

    Raises:
        ConfigError: it is none of `METRICS`.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric is {metric!r}, expected one of: {', '.join(METRICS)}")


def table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return a head and one row of text per trial, in the order given."""
    keys = list(outcomes[0].values) if outcomes else []
    rows = [["trial", *keys, *METRICS, "seconds"]]
    for outcome in outcomes:
        found = [f"{outcome.metrics[m]:.4f}" if outcome.metrics else "failed" for m in METRICS]
        values = [str(outcome.values[key]) for key in keys]
        rows.append([outcome.trial, *values, *found, f"{outcome.seconds:.1f}"])
    return rows


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the table in Markdown, and below it why trials failed."""
    head, *rows = table(outcomes)
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    failures = [f"\n{o.trial}: {o.failure}" for o in outcomes if o.failure]
    return "\n".join([*lines, *failures])


def _outcome(
    out: Path, trial: Trial, train: Callable[..., ModelBundle], *, options: RunOptions, say: Say
) -> Outcome:
    try:
        card = read_card(out)
    except BundleError:
        wandb = options.wandb._replace(group=out.parent.name, name=trial.name)
        try:
            options = options._replace(wandb=wandb)
            card = train(config=trial.config, options=options).card
        except TrainingError as error:
            say(f"trial {trial.name} failed: {error}")
            return Outcome(trial.name, trial.values, {}, failure=str(error))
    seconds = round(sum(card["seconds"].values()), 1)
    return Outcome(trial.name, trial.values, card["dev"]["dense"], seconds)


def _trial(base: Mapping[str, Any], values: Values, content_hash: str) -> Trial:
    config = from_mapping(TrainConfig, with_values(base, values))
    identity = json.dumps([flatten(config.to_dict()), content_hash], sort_keys=True)
    return Trial(hashlib.sha256(identity.encode()).hexdigest()[:8], values, config)


def _values(where: str, declared: Any) -> list[Any] | Range:
    if isinstance(declared, list) and declared:
        return declared
    keys = set(declared) if isinstance(declared, dict) else set()
    if not {"min", "max"} <= keys <= {"min", "max", "log"}:
        raise ConfigError(f"{where} is {declared!r}, expected a list or {{min, max, log}}")
    ends = [declared["min"], declared["max"]]
    whole = all(type(end) is int for end in ends)
    found = from_mapping(Range, declared, where=f"{where}.")
    if not found.min < found.max:
        raise ConfigError(f"{where} goes from {ends[0]} to {ends[1]}, expected min below max")
    if found.log and found.min <= 0:
        raise ConfigError(f"{where} is logarithmic from {ends[0]}, expected min above 0")
    return Range(found.min, found.max, found.log, whole)


def _end(values: list[Any] | Range, value: Any) -> Any:
    return round(value) if isinstance(values, Range) and values.whole else value


def _grid(space: Space, trials: int) -> list[Values]:
    """Return all combinations, or none where there are ranges or more than `trials` of them."""
    lists = [values for values in space.values() if isinstance(values, list)]
    if len(lists) < len(space) or math.prod(map(len, lists)) > trials:
        return []
    return [dict(zip(space, values, strict=True)) for values in product(*lists)]


def _draws(space: Space, *, trials: int, seed: int) -> list[Values]:
    rng = np.random.default_rng(seed)
    found: dict[str, Values] = {}
    for _ in range(trials * DRAWS_PER_TRIAL):
        drawn = {
            key: values.draw(rng)
            if isinstance(values, Range)
            else values[int(rng.integers(len(values)))]
            for key, values in space.items()
        }
        found.setdefault(json.dumps(drawn), drawn)
        if len(found) == trials:
            break
    return list(found.values())
