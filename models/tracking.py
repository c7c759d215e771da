"""Where the numbers of a run go: always `metrics.jsonl`, and W&B on request."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self, get_args

from models.errors import ConfigError, TrainingError

METRICS = "metrics.jsonl"

Mode = Literal["disabled", "offline", "online"]


class WandbOptions(NamedTuple):
    """Whether and where W&B listens."""

    mode: Mode = "disabled"
    project: str = "two-tower-search"


def wandb_options(mode: str) -> WandbOptions:
    """Return the options for a mode given as text.

    Raises:
        ConfigError: there is no such mode.
    """
    for known in get_args(Mode):
        if mode == known:
            return WandbOptions(mode=known)
    raise ConfigError(f"wandb is {mode!r}, expected one of: {', '.join(get_args(Mode))}")


class _Run(Protocol):
    """The part of a W&B run that is used."""

    def log(self, data: dict[str, Any]) -> None: ...

    def finish(self, exit_code: int | None = None) -> None: ...


class Tracker:
    """Appends one JSON object per record to `metrics.jsonl`, and sends it to W&B if asked.

    Attributes:
        count: number of records so far.
    """

    def __init__(
        self, folder: Path, *, config: Mapping[str, Any], wandb: WandbOptions, resumed: int = 0
    ) -> None:
        """Open the record of a run.

        Args:
            folder: the run folder.
            config: what W&B shows as the run's configuration.
            wandb: whether W&B listens.
            resumed: number of records to keep; later ones belong to work that is done again.

        Raises:
            TrainingError: W&B cannot start.
        """
        self._path = folder / METRICS
        kept = self._path.read_text(encoding="utf-8").splitlines()[:resumed] if resumed else []
        self.count = len(kept)
        self._file = self._path.open("w", encoding="utf-8")
        self._file.writelines(f"{line}\n" for line in kept)
        self._run = _start_wandb(folder, config, wandb)

    def log(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        self._file.write(json.dumps(dict(record)) + "\n")
        self._file.flush()
        self.count += 1
        if self._run is not None:
            self._run.log(dict(record))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Finish the file and the W&B run, as failed if the block raised."""
        self._file.close()
        if self._run is not None:
            self._run.finish(exit_code=int(error is not None))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run, oldest first."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _start_wandb(folder: Path, config: Mapping[str, Any], wandb: WandbOptions) -> _Run | None:
    if wandb.mode == "disabled":
        return None
    # W&B takes a second to import and starts a process; nobody else should pay for that.
    import wandb as client

    settings = client.Settings(silent=True, console="off")
    try:
        run: _Run = client.init(
            project=wandb.project,
            dir=str(folder),
            mode=wandb.mode,
            config=dict(config),
            settings=settings,
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"W&B could not start ({reason}); run `wandb login`, or use --wandb offline"
        ) from None
    return run
