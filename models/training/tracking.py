"""Where the numbers of a run go: always `metrics.jsonl`, and W&B on request.

W&B only listens: once it has started, its failures cost a line of news and no training.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast, get_args

from two_tower.models.errors import ConfigError, TrainingError
from two_tower.models.examples.corpus import Notify

if TYPE_CHECKING:
    from wandb import Run

METRICS = "metrics.jsonl"
PROJECT = "two-tower-search"

Mode = Literal["disabled", "offline", "online"]


class WandbOptions(NamedTuple):
    """Whether and where W&B listens.

    Attributes:
        mode: `offline` keeps everything in the run folder, for `wandb sync`.
        group: what the run is part of, such as a sweep; empty for nothing.
        name: of the run; empty lets W&B invent one.
    """

    mode: Mode = "disabled"
    group: str = ""
    name: str = ""


def wandb_options(mode: str) -> WandbOptions:
    """Return the options for a mode given as text.

    Raises:
        ConfigError: there is no such mode.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"wandb is {mode!r}, expected one of: {', '.join(get_args(Mode))}")
    return WandbOptions(cast(Mode, mode))


class Tracker:
    """Appends one JSON object per record to `metrics.jsonl`, and sends it to W&B if asked.

    Attributes:
        count: number of records so far.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        wandb: WandbOptions,
        resumed: int = 0,
        notify: Notify = lambda line: None,
    ) -> None:
        """Open the record of a run in its folder.

        The first `resumed` records stay; later ones belong to work that is done again. W&B shows
        `config`; `notify` gets a line when W&B fails later on.

        Raises:
            TrainingError: W&B cannot start.
        """
        self._folder, self._wandb, self._notify = folder, wandb, notify
        path = folder / METRICS
        lines = path.read_text(encoding="utf-8").splitlines()[:resumed] if resumed else []
        self.count = len(lines)
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(f"{line}\n" for line in lines)
        self._run = _start_wandb(folder, config, wandb)
        for line in lines:  # every W&B run shows the whole training, also after a kill
            self._tell(methodcaller("log", json.loads(line)))

    def log(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        self._file.write(json.dumps(dict(record)) + "\n")
        self._file.flush()
        self.count += 1
        self._tell(lambda run: run.log(dict(record)))

    def keep_bundle(self, path: Path, *, about: Mapping[str, Any]) -> None:
        """Give W&B the finished bundle as an artifact that carries `about`."""
        make = partial(_artifact, path, about, folder=self._folder, wandb=self._wandb)
        self._tell(lambda run: run.log_artifact(make()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Finish the file and the W&B run, as failed if the block raised."""
        self._file.close()
        self._tell(lambda run: run.finish(exit_code=int(error is not None)))

    def _tell(self, action: Callable[["Run"], object]) -> None:
        """Do something with the W&B run, if there is one; leave W&B out after a failure."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._run = None
            self._notify(f"W&B failed and is left out from here ({_reason(error)})")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run, oldest first."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _start_wandb(folder: Path, config: Mapping[str, Any], wandb: WandbOptions) -> "Run | None":
    if wandb.mode == "disabled":
        return None
    # W&B takes a second to import and starts a process; nobody else should pay for that.
    if wandb.mode != "online":  # what says offline reports no errors of its own, either
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb as client

    settings = client.Settings(silent=True, console="off")
    try:
        return client.init(
            project=PROJECT,
            dir=str(folder),
            mode=wandb.mode,
            config=dict(config),
            settings=settings,
            group=wandb.group or None,
            name=wandb.name or None,
        )
    except Exception as error:
        raise TrainingError(
            f"W&B could not start ({_reason(error)}); run `wandb login`, or use --wandb offline"
        ) from None


def _artifact(path: Path, about: Mapping[str, Any], *, folder: Path, wandb: WandbOptions) -> Any:
    """Return the folder `path` as a W&B artifact of type model."""
    import wandb as client

    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in path.name) or "bundle"
    artifact = client.Artifact(name=name, type="model", metadata=dict(about))
    # Offline, the files wait for `wandb sync` in the run folder, where nobody replaces them.
    policy: Literal["mutable", "immutable"] = "mutable" if wandb.mode == "offline" else "immutable"
    variable = "WANDB_DATA_DIR"
    is_set = variable in os.environ
    os.environ.setdefault(variable, str(folder / "wandb"))
    try:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                inside = file.relative_to(path).as_posix()
                artifact.add_file(str(file), name=inside, skip_cache=True, policy=policy)
    finally:
        if not is_set:
            del os.environ[variable]
    return artifact


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
