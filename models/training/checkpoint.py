"""The run folder: what a killed training needs to go on, in files that are always complete.

RUN/run.json                   configuration and data of the run; another's are refused
RUN/environment.json           where it runs: commit, platform, cores, device, versions
RUN/tokenizer.model            once the vocabulary is learnt
RUN/checkpoint.safetensors     towers, best towers, optimizer and progress, after each epoch
RUN/before_labels.safetensors  towers at the beginning of the labelled phase
RUN/negatives.safetensors      what the towers mined at the beginning of the hard phase
RUN/metrics.jsonl              one record per epoch
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from two_tower.models.config import flatten
from two_tower.models.errors import TrainingError
from two_tower.models.files import lock_folder, write_bytes, write_json
from two_tower.models.vectors import FloatArray

CHECKPOINT = "checkpoint.safetensors"
RECORDS = (CHECKPOINT, "finished.json", "failed.json")

Arrays = dict[str, FloatArray]


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        phase: index of the phase to go on with.
        epoch: epochs of it that are done.
        best_epoch: which of them was best on dev; 0 is the state before the first.
        best: recall@10 on dev of that epoch.
        records: lines of metrics.jsonl that belong to finished work.
    """

    phase: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best: float = -1.0
    records: int = 0


class Checkpoint(NamedTuple):
    """Progress and all arrays; their names begin with what they are (`towers.`, `adam.`…)."""

    progress: Progress
    arrays: Arrays

    def part(self, name: str) -> Arrays:
        """Return the arrays under `name.`, without that prefix."""
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): array
            for key, array in self.arrays.items()
            if key.startswith(prefix)
        }


def parts(**named: Arrays) -> Arrays:
    """Join groups of arrays under their names, the inverse of `Checkpoint.part`."""
    return {f"{name}.{key}": array for name, group in named.items() for key, array in group.items()}


def run_path(out: str | Path) -> Path:
    """Return the run folder that belongs to a bundle: its sibling `<name>.run`."""
    out = Path(out).resolve()
    return out.with_name(f"{out.name}.run")


class RunFolder:
    """The folder of one training run, held by one process at a time; its files are named above."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokenizer = path / "tokenizer.model"
        self.before_labels = path / "before_labels.safetensors"
        self.negatives = path / "negatives.safetensors"
        self._checkpoint = path / CHECKPOINT
        self._identity = path / "run.json"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it during the block.

        Raises:
            TrainingError: another process trains here, or the folder cannot be written.
        """
        try:
            lock = lock_folder(self.path)
        except BlockingIOError:
            raise TrainingError(
                f"another process is training in {self.path}; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written ({error.strerror})") from None
        try:
            yield
        finally:
            # A run that failed before there was anything to go on from leaves no folder.
            if not any((self.path / name).exists() for name in RECORDS):
                shutil.rmtree(self.path, ignore_errors=True)
            os.close(lock)

    def claim(self, identity: Mapping[str, Any], *, force: bool) -> bool:
        """Start the run described by `identity`, or go on with it.

        Args:
            identity: whatever must be equal for a run to go on (plain JSON values).
            force: drop an unfinished run that differs.

        Returns:
            Whether there is an unfinished run to go on with.

        Raises:
            TrainingError: an unfinished run differs and `force` is off.
        """
        new = json.loads(json.dumps(identity))
        old = self._read_identity()
        unfinished = self._checkpoint.exists()
        if old == new:
            return unfinished
        if old is not None and unfinished and not force:
            raise TrainingError(
                f"{self.path} holds an unfinished run with {_difference(old, new)}; "
                "repeat its values to go on, or start over with --force"
            )
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        write_json(self._identity, new)
        return False

    def end(self, outcome: str) -> None:
        """Keep the record and drop the rest; run.json becomes `<outcome>.json`.

        Args:
            outcome: `finished`, or `failed` where going on would only fail again.
        """
        self._identity.rename(self.path / f"{outcome}.json")
        for path in (self._checkpoint, self.before_labels, self.negatives, self.tokenizer):
            path.unlink(missing_ok=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint in one step.

        Raises:
            TrainingError: it cannot be written; the one before stays.
        """
        metadata = {"progress": json.dumps(checkpoint.progress._asdict())}
        try:
            write_bytes(self._checkpoint, save_arrays(checkpoint.arrays, metadata=metadata))
        except OSError as error:
            raise TrainingError(
                f"{self._checkpoint} cannot be written ({error.strerror or error}); make room and "
                "run the same command again: it goes on at the checkpoint before"
            ) from None

    def load(self) -> Checkpoint:
        """Read the checkpoint.

        Raises:
            TrainingError: it is broken.
        """
        try:
            with safe_open(str(self._checkpoint), framework="numpy") as file:
                progress = Progress(**json.loads(file.metadata()["progress"]))
                arrays = {key: file.get_tensor(key) for key in list(file.keys())}
            return Checkpoint(progress, arrays)
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise TrainingError(
                f"{self._checkpoint} is broken ({error}); start over with --force"
            ) from None

    def _read_identity(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._identity.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    old, new = flatten(old), flatten(new)
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    shown = [f"{key} = {old.get(key)} (asked for: {new.get(key)})" for key in keys[:3]]
    return ", ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
