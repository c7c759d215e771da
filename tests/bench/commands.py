"""Write docs/commands.md: every command as `--help` prints it.

    python tests/bench/commands.py

Names, arguments, options, defaults and help come from the command objects themselves, so the page
cannot say what the code does not; a test compares the two.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from two_tower.ingest.cli import app as ingest_app
from two_tower.models.cli import app as models_app
from two_tower.retriever.cli import app as retriever_app

ROOT = Path(__file__).parent.parent.parent
TARGET = ROOT / "docs" / "commands.md"
PROGRAMS = {"ingest": ingest_app, "models": models_app, "retriever": retriever_app}
HEAD = """# Commands

For whoever writes a script or looks up one option: every command as `--help` prints it. `make docs`
generates this page from the commands.

Data goes to stdout. Progress, notes, warnings and the command that comes next go to stderr;
`--quiet` leaves warnings and errors. Long work shows a bar with its rate and the time left on a
terminal, and a line every 30 seconds elsewhere. Exit codes: 0 done, 1 a failure explained in one
line, 2 wrong usage.

Tables and text are as wide as the terminal; in a pipe or a file 100 columns, or as many as
`COLUMNS` says. Columns without room follow in a further table below, which repeats the first. Only
what is for programs has lines of any length: `--json`, and the tab-separated rows of
`retriever fields` and `models sweep` in a pipe.
"""


def render() -> str:
    """Return docs/commands.md as the commands are now."""
    parts = [HEAD]
    for program, app in PROGRAMS.items():
        group = get_command(app)
        context = group.make_context(program, [], resilient_parsing=True)
        parts.append(f"## {program}\n\n{group.help}\n")
        parts += list(sections(group, context, words=program))
    return "\n".join(parts)


def sections(group: Any, parent: Any, *, words: str) -> Iterator[str]:
    """Yield a section for each command of a group, and for those of its groups."""
    for name, command in group.commands.items():
        path = f"{words} {name}"
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        if hasattr(command, "commands"):
            yield from sections(command, context, words=path)
        else:
            yield section(command, context, path=path)


def section(command: Any, context: Any, *, path: str) -> str:
    """Return one command: its usage, its help, a table of its arguments and options."""
    usage = command.get_usage(context).removeprefix("Usage: ")
    lines = [f"### {path}", "", f"    {' '.join(usage.split())}", "", command.help.strip(), ""]
    lines += ["| argument or option | meaning |", "| --- | --- |"]
    for parameter in command.get_params(context):
        if parameter.name == "help":
            continue
        names, meaning = parameter.get_help_record(context)
        lines.append(f"| {cell(f'`{names}`')} | {cell(meaning)} |")
    return "\n".join([*lines, ""])


def cell(text: str) -> str:
    """Return text that stays in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    TARGET.write_text(render(), encoding="utf-8")
    print(f"Wrote {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
