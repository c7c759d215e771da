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
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import read_card
from two_tower.models.config import configuration, flatten, from_mapping, with_values
from two_tower.models.data import Dataset
from two_tower.models.errors import BundleError, ConfigError, TrainingError
from two_tower.models.examples.corpus import Notify
from two_tower.models.files import write_bytes, write_json
from two_tower.models.text.bm25 import Analyzer
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.dev_metrics import METRIC_NAMES
from two_tower.models.training.run import RunOptions, train_bundle
from two_tower.models.yaml_file import read_yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DRAWS_PER_TRIAL = 100

Values = dict[str, Any]
"""Dotted key -> value."""


@configuration("range")
class Range:
    """Numbers from `min` to `max`, integers if both ends are; `log` draws their logarithms."""

    min: float
    max: float
    log: bool = False
    integers: bool = False

    def number(self, value: float) -> float | int:
        """Return a value of the range, an integer or rounded to four digits."""
        inside = min(max(float(f"{value:.4g}"), self.min), self.max)
        return round(inside) if self.integers else inside


Space = Mapping[str, list[Any] | Range]


class Trial(NamedTuple):
    """One training run of a sweep: its bundle's name, what it sets, its whole configuration."""

    name: str
    values: Values
    config: TrainConfig


class Outcome(NamedTuple):
    """What became of a trial: metrics of the full vectors on dev, or why it failed in one line."""

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
    declared = {str(key): value for key, value in read_yaml(path).items()}
    space = {key: _read_values(f"{path}: {key}", value) for key, value in declared.items()}
    if not space:
        raise ConfigError(f"{path} is empty, expected keys such as labelled.temperature: [0.03]")
    return space


def plan(
    base: Mapping[str, Any], space: Space, *, trials: int, seed: int, content_hash: str
) -> list[Trial]:
    """Return the trials: all combinations, where there are lists alone and not more than `trials`.

    Otherwise `trials` different random draws; a larger number begins with the same ones. The
    trials change `base`, a configuration in plain values; DATA's hash is part of their names.

    Raises:
        ConfigError: a key is unknown, a value impossible, or optuna is not installed for the draws.
    """
    if trials < 1:
        raise ConfigError(f"trials is {trials}, expected 1 or more")
    for key, values in space.items():  # an impossible value is refused before any training
        if isinstance(values, Range):
            values = [round(end) if values.integers else end for end in (values.min, values.max)]
        for value in values:
            from_mapping(TrainConfig, with_values(base, {key: value}))
    lists = [values for values in space.values() if isinstance(values, list)]
    if len(lists) == len(space) and math.prod(map(len, lists)) <= trials:
        settings = [dict(zip(space, values, strict=True)) for values in product(*lists)]
    else:
        settings = _draws(space, trials=trials, seed=seed)
    return [_trial(base, values, content_hash=content_hash) for values in settings]


def run_sweep(
    data: Dataset,
    folder: Path,
    trials: Sequence[Trial],
    *,
    metric: str = "recall@10",
    analyzer: Analyzer,
    options: RunOptions,
    notify: Notify,
) -> list[Outcome]:
    """Train all trials that are not done, and return them all, best first.

    A trial that cannot be trained (collapse) is kept with its reason, and the others go on.

    Raises:
        ConfigError: there is no such metric.
    """
    if metric not in METRIC_NAMES:
        raise ConfigError(f"metric is {metric!r}, expected one of: {', '.join(METRIC_NAMES)}")
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for number, trial in enumerate(trials, 1):
        shown = " ".join(f"{key}={value}" for key, value in trial.values.items())
        notify(f"trial {number}/{len(trials)} {trial.name}: {shown}")
        wandb = options.wandb._replace(group=folder.name, name=trial.name)
        train = partial(
            train_bundle,
            data,
            folder / trial.name,
            config=trial.config,
            analyzer=analyzer,
            options=options._replace(wandb=wandb),
            notify=notify,
        )
        outcomes.append(_outcome(trial, folder / trial.name, train=train, notify=notify))
        outcomes.sort(key=lambda outcome: -outcome.metrics.get(metric, -1.0))
        plain = [outcome._asdict() for outcome in outcomes]
        write_json(folder / "sweep.json", {"metric": metric, "trials": plain})
        write_bytes(folder / "sweep.md", f"{to_markdown(outcomes)}\n".encode())
    return outcomes


def table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return a head and one row of text per trial, in the order given."""
    keys = list(outcomes[0].values) if outcomes else []
    rows = [["trial", *keys, *METRIC_NAMES, "seconds"]]
    for trial, values, metrics, seconds, _ in outcomes:
        cells = [f"{metrics[name]:.4f}" if metrics else "failed" for name in METRIC_NAMES]
        rows.append([trial, *(str(values[key]) for key in keys), *cells, f"{seconds:.1f}"])
    return rows


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the table in Markdown, and below it why trials failed."""
    head, *rows = table(outcomes)
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    failures = [f"\n{o.trial}: {o.failure}" for o in outcomes if o.failure]
    return "\n".join([*lines, *failures])


def _outcome(
    trial: Trial, out: Path, *, train: Callable[[], ModelBundle], notify: Notify
) -> Outcome:
    try:
        card = read_card(out)
    except BundleError:
        try:
            card = train().card
        except TrainingError as error:
            notify(f"trial {trial.name} failed: {error}")
            return Outcome(trial.name, trial.values, {}, failure=str(error))
    seconds = round(sum(card["seconds"].values()), 1)
    return Outcome(trial.name, trial.values, card["dev"]["dense"], seconds)


def _trial(base: Mapping[str, Any], values: Values, *, content_hash: str) -> Trial:
    config = from_mapping(TrainConfig, with_values(base, values))
    identity = json.dumps([flatten(config.to_dict()), content_hash], sort_keys=True)
    return Trial(hashlib.sha256(identity.encode()).hexdigest()[:8], values, config)


def _read_values(where: str, declared: Any) -> list[Any] | Range:
    if isinstance(declared, list) and declared:
        return declared
    keys = set(declared) if isinstance(declared, dict) else set()
    if not {"min", "max"} <= keys <= {"min", "max", "log"}:
        raise ConfigError(f"{where} is {declared!r}, expected a list or {{min, max, log}}")
    low, high = declared["min"], declared["max"]
    integers = type(low) is type(high) is int
    result = from_mapping(Range, {**declared, "integers": integers}, where=f"{where}.")
    if not result.min < result.max:
        raise ConfigError(f"{where} goes from {low} to {high}, expected min below max")
    if result.log and result.min <= 0:
        raise ConfigError(f"{where} is logarithmic from {low}, expected min above 0")
    return result


def _draws(space: Space, *, trials: int, seed: int) -> list[Values]:
    """Return `trials` different draws, or fewer where the space has no more."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "a random sample of settings needs optuna; pip install 'two-tower-search[sweep]', or "
            "give lists of no more combinations than --trials"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    distributions: dict[str, BaseDistribution] = {}
    for key, values in space.items():
        if isinstance(values, list):  # the place in the list, for its values may be lists
            distributions[key] = optuna.distributions.IntDistribution(0, len(values) - 1)
        elif values.integers:
            low, high = round(values.min), round(values.max)
            distributions[key] = optuna.distributions.IntDistribution(low, high, values.log)
        else:
            distributions[key] = optuna.distributions.FloatDistribution(
                values.min, values.max, values.log
            )
    drawn: dict[str, Values] = {}
    for _ in range(trials * DRAWS_PER_TRIAL):
        params = study.ask(distributions).params
        settings = {
            key: values[params[key]] if isinstance(values, list) else values.number(params[key])
            for key, values in space.items()
        }
        drawn.setdefault(json.dumps(settings), settings)
        if len(drawn) == trials:
            break
    return list(drawn.values())
