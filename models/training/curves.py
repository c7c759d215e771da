"""The curves of a training run as a picture: loss of each phase, metrics on dev."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.training.checkpoint import run_path
from two_tower.models.training.tracking import METRICS, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


FORMATS = (".png", ".svg", ".pdf")

NOT_ON_DEV = ("phase", "epoch", "loss", "cosine", "seconds")
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class Stretch(NamedTuple):
    """The epochs of one phase, in a row.

    Attributes:
        name: of the phase.
        epochs: their numbers, counted from 1 over the whole run.
        losses: one per epoch.
    """

    name: str
    epochs: list[int]
    losses: list[float]


def save_curves(bundle: Path, target: Path) -> None:
    """Draw the run of a bundle into the file `target`.

    Raises:
        BundleError: the run folder beside the bundle is gone or holds no epoch.
        ConfigError: the file's ending is not one of `FORMATS`, or it cannot be written.
    """
    if target.suffix.lower() not in FORMATS:
        raise ConfigError(f"{target} ends in {target.suffix!r}, expected {', '.join(FORMATS)}")
    records = _records(bundle)
    try:
        draw(records, target, title=f"Training of {bundle.name}")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror})") from None


def stretches(records: Sequence[Mapping[str, Any]]) -> list[Stretch]:
    """Split the records of a run (oldest first) by phase."""
    numbered = enumerate(records, 1)
    found = []
    for name, group in groupby(numbered, key=lambda pair: str(pair[1]["phase"])):
        pairs = list(group)
        losses = [float(record["loss"]) for _, record in pairs]
        found.append(Stretch(name, [number for number, _ in pairs], losses))
    return found


def dev_metrics(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the metrics on dev by name, one number per epoch."""
    names = [name for name in records[0] if name not in NOT_ON_DEV]
    return {name: [float(record.get(name, "nan")) for record in records] for name in names}


def draw(records: Sequence[Mapping[str, Any]], target: Path, *, title: str) -> None:
    """Draw the records of metrics.jsonl; the ending of `target` says in which format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    figure.suptitle(title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    parts = stretches(records)
    _draw_losses(above, parts)
    _draw_metrics(below, dev_metrics(records), epochs=len(records))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        for part in parts[1:]:
            axes.axvline(part.epochs[0] - 0.5, color="0.5", linestyle="--", linewidth=1)
    figure.savefig(target)


def _draw_losses(axes: "Axes", parts: Sequence[Stretch]) -> None:
    for part, colour in zip(parts, COLOURS * len(parts), strict=False):
        axes.plot(part.epochs, part.losses, color=colour, marker="o", markersize=3, label=part.name)
    if all(loss > 0 for part in parts for loss in part.losses):
        axes.set_yscale("log")  # the phases have losses of their own, far apart
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(_sparse_label)
    axes.set_ylabel("training loss\n(mean per batch)")
    axes.legend(title="phase", loc="upper left", bbox_to_anchor=(1.01, 1))


def _sparse_label(value: float, _: float = 0.0) -> str:
    """Return the label of a minor tick of a logarithmic axis: 2 and 5 of each decade only."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _draw_metrics(axes: "Axes", metrics: Mapping[str, Sequence[float]], *, epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for (name, values), colour in zip(metrics.items(), COLOURS * len(metrics), strict=False):
        numbers = range(1, epochs + 1)
        axes.plot(numbers, values, color=colour, marker="o", markersize=3, label=name)
    axes.set_xlabel("epoch, counted over all phases")
    axes.set_ylabel("dev, mean over queries (0 to 1)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.5, epochs + 0.5)
    axes.legend(title="on dev", loc="upper left", bbox_to_anchor=(1.01, 1))


def _records(bundle: Path) -> list[dict[str, Any]]:
    folder = run_path(bundle)
    try:
        records = read_metrics(folder)
    except OSError:
        raise BundleError(
            f"{bundle} has no run folder beside it ({folder / METRICS} is missing); "
            f"put it back, or train again with: models train DATA --out {bundle} --force"
        ) from None
    except ValueError as error:
        raise BundleError(
            f"{folder / METRICS} is broken ({error}); train the bundle again"
        ) from None
    if not records:
        raise BundleError(f"{folder / METRICS} records no epoch; the run had none to draw")
    return records
