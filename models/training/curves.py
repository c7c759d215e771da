"""The curves of a training run as a picture: loss of each phase, metrics on dev."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from two_tower.models.drawing import drawing, save
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.training.checkpoint import run_path
from two_tower.models.training.tracking import METRICS, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
NOT_ON_DEV = ("phase", "epoch", "loss", "cosine", "seconds")


class Curve(NamedTuple):
    """One line of the picture; epochs count from 1 over the whole run."""

    name: str
    epochs: list[int]
    values: list[float]


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
        _draw(records, target, title=f"Training of {bundle.name}")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror})") from None


def loss_curves(records: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return the losses of a run (its records oldest first), a curve per phase."""
    numbered = enumerate(records, 1)
    curves = []
    for name, group in groupby(numbered, key=lambda pair: str(pair[1]["phase"])):
        epochs, phase = zip(*group, strict=True)
        curves.append(Curve(name, list(epochs), [float(record["loss"]) for record in phase]))
    return curves


def metric_curves(records: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return the metrics on dev, a curve each; not a number where an epoch has none."""
    names = [name for name in records[0] if name not in NOT_ON_DEV]
    epochs = list(range(1, len(records) + 1))
    return [
        Curve(name, epochs, [float(record.get(name, "nan")) for record in records])
        for name in names
    ]


@drawing()
def _draw(records: Sequence[Mapping[str, Any]], target: Path, *, title: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    losses = loss_curves(records)
    figure = Figure(figsize=(9, 7), layout="constrained")
    figure.suptitle(title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    above.set_ylabel("training loss\n(mean per batch)")
    if all(loss > 0 for curve in losses for loss in curve.values):
        above.set_yscale("log")  # the phases have losses of their own, far apart
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_formatter(_sparse_label)
    below.set_xlabel("epoch, counted over all phases")
    below.set_ylabel("dev, mean over queries (0 to 1)")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set_xlim(0.5, len(records) + 0.5)
    _plot(above, losses, legend="phase")
    _plot(below, metric_curves(records), legend="on dev")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        for curve in losses[1:]:
            axes.axvline(curve.epochs[0] - 0.5, color="0.5", linestyle="--", linewidth=1)
    save(figure, target, dpi=120)


def _plot(axes: "Axes", curves: Sequence[Curve], *, legend: str) -> None:
    for name, epochs, values in curves:
        axes.plot(epochs, values, marker="o", markersize=3, label=name)
    axes.legend(title=legend, loc="upper left", bbox_to_anchor=(1.01, 1))


def _sparse_label(value: float, _: float = 0.0) -> str:
    """Return the label of a minor tick of a logarithmic axis: 2 and 5 of each decade only."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


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
