"""What the three commands share: one-line failures and a progress bar on stderr."""

import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import typer
from tqdm import tqdm
from typer.core import TyperGroup

from two_tower.models.errors import TwoTowerError

T = TypeVar("T")


class _Stderr(logging.Handler):
    """Prints what the library logs, a line each, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(record.getMessage(), err=True)


class CommandGroup(TyperGroup):
    """A Typer group that ends a known failure in one line on stderr and exit code 1.

    Ctrl-C ends in one line as well, with exit code 130.

    Set `TWO_TOWER_TRACEBACK=1` to see the traceback instead.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class for what becomes of its errors."""
        log = logging.getLogger("two_tower")
        if not log.handlers:
            log.addHandler(_Stderr())
            log.setLevel(logging.INFO)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Stopped; the same command again goes on where it can.", err=True)
            raise typer.Exit(130) from None
        except TwoTowerError as error:
            if os.environ.get("TWO_TOWER_TRACEBACK"):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from None


def progress(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` under a progress bar on stderr (silent where stderr is not a terminal).

    `total` says how many there are, where `len(items)` cannot.
    """
    return iter(tqdm(items, desc=label, total=total, unit_scale=True, disable=None, leave=False))
