"""Programs in a real terminal."""

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Sequence


def run_in_terminal(
    program: str,
    *arguments: str,
    typed: Sequence[str] = (),
    prompt: bytes = b"",
    width: int = 80,
    **environment: str,
) -> str:
    """What a terminal shows of a Python program while `typed` is typed, a piece at each prompt."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, width))
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=inherited | {"TERM": "xterm"} | environment,
    )
    os.close(theirs)
    shown = b""
    for piece in typed:
        shown += read_until(ours, prompt)
        os.write(ours, piece.encode())
    shown += read_until(ours, None)
    os.close(ours)
    assert process.wait(timeout=60) == 0, shown.decode()
    return shown.decode().replace("\r\n", "\n")


def read_until(terminal: int, ending: bytes | None) -> bytes:
    shown = b""
    while ending is None or not shown.endswith(ending):
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        shown += piece
    return shown
