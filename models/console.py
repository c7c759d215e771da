"""What the three commands share: one-line failures, and text and tables to read.

On a terminal rich draws them, and what could steer the terminal is made visible first. A pipe or a
file gets plain text that scripts can read.
"""

import atexit
import contextlib
import errno
import functools
import gc
import inspect
import logging
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from two_tower.models import progress
from two_tower.models.control_characters import escaped, visible
from two_tower.models.errors import TwoTowerError, is_panic
from two_tower.models.extras import of_missing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Rows = Sequence[list[str]]
"""A table as text, its head first."""

GARBAGE_AFTER = 20_000
"""New objects until Python looks for garbage: imports make many that stay."""

LONGEST_LINE = 2000
"""Characters of a failure; what it quotes may have any length."""

Columns = Sequence[list[str]]

PIPE_COLUMNS = 100

GAP = 2  # between the columns of a table


class _Stderr(logging.Handler):
    """Prints what the library logs, a line each, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            say(record.getMessage())
        else:
            note(record.getMessage())


class CommandGroup(TyperGroup):
    """A group of commands that ends any failure in one line on stderr.

    The exit code is 1, and 130 after Ctrl-C. `TWO_TOWER_TRACEBACK=1` shows the traceback of a
    failure instead.
    """

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the command line; typer says nothing of Ctrl-C here."""
        try:
            return super().make_context(*args, **extra)
        except KeyboardInterrupt:
            say("Stopped.")
            raise typer.Exit(130) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class for what becomes of its errors."""
        log = logging.getLogger("two_tower")
        if not log.handlers:
            log.addHandler(_Stderr())
            log.setLevel(logging.INFO)
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a full disk is met here, and not after the end
            return result
        except KeyboardInterrupt:
            say(STOPPED)
            raise typer.Exit(130) from None
        except BaseException as error:
            is_ours = isinstance(error, Exception) or is_panic(error)
            if not is_ours or _is_of_typer(error) or os.environ.get("TWO_TOWER_TRACEBACK"):
                raise
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # whoever reads has had enough
            say(f"Error: {_sentence(error)[:LONGEST_LINE]}")
            _give_up_stdout()
            raise typer.Exit(1) from None

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; what is written before a command runs can fail, too."""
        gc.set_threshold(GARBAGE_AFTER)
        # A process that ends looks for garbage once more: a fifth of what a search takes in all.
        atexit.unregister(gc.freeze)
        atexit.register(gc.freeze)
        try:
            return super().main(*args, **extra)
        except OSError as error:
            say(f"Error: {_sentence(error)}")
            _give_up_stdout()
            raise SystemExit(1) from None


STOPPED = "Stopped; the same command again goes on where it can."


def _is_of_typer(error: BaseException) -> bool:
    """Return whether typer itself makes an answer of an error: a wrong flag, an exit code."""
    return isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "show")


def _sentence(error: BaseException) -> str:
    if isinstance(error, TwoTowerError):
        return str(error)
    if (missing := of_missing(error)) is not None:
        return missing
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror or error}"
    if isinstance(error, MemoryError):
        return "the memory is not enough for this"
    reason = " ".join(str(error).split())
    return (
        f"unexpected {type(error).__name__}: {reason[:300]}; TWO_TOWER_TRACEBACK=1 shows where. "
        "Please report it"
    )


def _give_up_stdout() -> None:
    """Drop what stdout cannot take; Python would try, and complain, once more at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Application(typer.Typer):
    """A command line each of whose commands has `--quiet`."""

    def command(  # type: ignore[override]
        self, *args: Any, **settings: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return what makes a command of a function, and leaves the function as it is."""
        register = super().command(*args, **settings)

        def make(function: Callable[..., Any]) -> Callable[..., Any]:
            register(_with_quiet(function))
            return function

        return make


Quiet = Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but warnings and errors.")]


def _with_quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with one more option, which is that of the console."""

    @functools.wraps(function)
    def command(*args: Any, quiet: bool, **values: Any) -> Any:
        progress.begin(is_quiet=quiet)
        return function(*args, **values)

    signature = inspect.signature(function)
    option = inspect.Parameter(
        "quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet
    )
    parameters = [*signature.parameters.values(), option]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {**function.__annotations__, "quiet": Quiet}
    return command


def application(summary: str) -> typer.Typer:
    """Return an empty command line; `summary` heads its help."""
    app = _Application(
        cls=CommandGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=summary)(_options)
    return app


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from two_tower import __version__

        typer.echo(f"two-tower-search {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Take what stands before a command."""


def say(line: str) -> None:
    """Print a line on stderr."""
    typer.echo(visible(line) if sys.stderr.isatty() else line, err=True)


def note(line: str) -> None:
    """Print a line on stderr that `--quiet` leaves out."""
    if not progress.is_quiet():
        say(line)


def name_next(*words: object) -> None:
    """Name the command that comes next, by its words."""
    note(f"Next: {shlex.join(map(str, words))}")


def terminal() -> "Console | None":
    """Return the terminal that stdout is, None for a pipe or a file.

    Where NO_COLOR is set (https://no-color.org) it gets no escape sequence at all.
    """
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return Console(color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)


def print_styled(text: "Text") -> None:
    """Print text in its styles, without them in a pipe."""
    if screen := terminal():
        screen.print(text)
    else:
        typer.echo(text.plain)


def print_text(text: str) -> None:
    """Print text; its lines are broken between words."""
    if screen := terminal():
        screen.print(visible(text), markup=False, emoji=False)
    else:
        lines = [_broken(line, pipe_width()) or [""] for line in text.split("\n")]
        typer.echo("\n".join(chain.from_iterable(lines)))


def _broken(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)


def print_json(text: str) -> None:
    """Print JSON; on a terminal, what could steer it stands there as an escape."""
    if sys.stdout.isatty():
        text = escaped(text)
    typer.echo(text)


def print_pairs(pairs: Iterable[tuple[str, str]], *, width: int) -> None:
    """Print names and their values; in a pipe the values begin at column `width`."""
    screen = terminal()
    if screen is None:
        for name, value in pairs:
            lines = _broken(value, pipe_width() - width)
            for head, line in zip_longest([name], lines, fillvalue=""):
                typer.echo(f"{head:<{width}}{line}" if line else head)
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, value in pairs:
        grid.add_row(Text(visible(name)), Text(visible(value)))
    screen.print(grid)


def pipe_width() -> int:
    """Return the columns of what is no terminal: `COLUMNS`, or 100."""
    return shutil.get_terminal_size((PIPE_COLUMNS, 0)).columns


def print_table(
    rows: Rows, plain: Callable[[Rows], str] | None = None, *, align: str = "lr", keys: int = 1
) -> None:
    """Print a table; columns that a terminal or a pipe has no room for follow in a table below.

    Args:
        rows: the head and the body.
        plain: makes what a pipe gets of rows; without, that is tab-separated, for programs, and in
            one piece.
        align: `l` or `r` for each column; the last letter goes for the rest.
        keys: how many columns at the left each further table repeats.
    """
    screen = terminal()
    if screen is None:
        blocks = [rows] if plain is None else _blocks_of_text(rows, plain, keys=keys)
        typer.echo("\n\n".join(map(plain or _tab_separated, blocks)))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    letters = align.ljust(len(rows[0]), align[-1])
    columns = [_padded(*pair) for pair in zip(zip(*rows, strict=True), letters, strict=True)]
    fits = functools.partial(_fits_screen, room=screen.width)
    for number, block in enumerate(_blocks(columns, fits, keys=keys)):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
        head, *body = zip(*block, strict=True)
        for name in head:
            table.add_column(Text(name), no_wrap=True, overflow="fold")
        for row in body:
            table.add_row(*map(Text, row))
        if number:
            typer.echo()
        screen.print(table)


def _tab_separated(rows: Rows) -> str:
    return "\n".join(map("\t".join, rows))


def _padded(column: Sequence[str], letter: str) -> list[str]:
    """Return cells of one width; rich's own alignment cuts spaces off their right."""
    from rich.cells import cell_len

    cells = list(map(visible, column))
    width = max(map(cell_len, cells))
    spaces = [" " * (width - cell_len(cell)) for cell in cells]
    return [
        space + cell if letter == "r" else cell + space
        for cell, space in zip(cells, spaces, strict=True)
    ]


def _fits_screen(columns: Columns, *, room: int) -> bool:
    from rich.cells import cell_len

    return sum(cell_len(head) + GAP for head, *_ in columns) - GAP <= room


def _blocks_of_text(rows: Rows, plain: Callable[[Rows], str], *, keys: int) -> Iterator[Rows]:
    """Yield tables whose lines, as `plain` makes them, have room in a pipe."""
    room = pipe_width()

    def fits(columns: Columns) -> bool:
        return max(map(len, plain(_rows(columns)).splitlines())) <= room

    return map(_rows, _blocks(list(map(list, zip(*rows, strict=True))), fits, keys=keys))


def _rows(columns: Columns) -> Rows:
    return list(map(list, zip(*columns, strict=True)))


def _blocks(
    columns: Columns, fits: Callable[[Columns], bool], *, keys: int
) -> Iterator[list[list[str]]]:
    """Yield the columns that stand side by side, the keys first in each block."""
    block = list(columns[:keys])
    for column in columns[keys:]:
        if len(block) > keys and not fits([*block, column]):
            yield block
            block = list(columns[:keys])
        block.append(column)
    yield block
