"""The three commands as they are installed: Ctrl-C ends them in one line from the first moment."""

import sys
from importlib import import_module


def _run(package: str) -> None:
    try:
        import_module(f"two_tower.{package}.cli").app()
    except KeyboardInterrupt:  # while it is imported, or put together from its functions
        print("Stopped.", file=sys.stderr)
        raise SystemExit(130) from None


def ingest() -> None:
    """Run `ingest`."""
    _run("ingest")


def models() -> None:
    """Run `models`."""
    _run("models")


def retriever() -> None:
    """Run `retriever`."""
    _run("retriever")
