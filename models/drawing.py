"""How every chart is drawn: matplotlib without a screen, text that stays text, the same bytes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# The first six are Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4bb5", "#555b63")

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler(linestyle=['-', '--', ':']) * cycler(color={list(COLOURS)})",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it
    "svg.fonttype": "none",  # text, not outlines of letters
    "svg.hashsalt": "two-tower",  # ids are random otherwise
    "text.parse_math": False,  # a name may hold a $
}

UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@contextmanager
def drawing() -> Iterator[None]:
    """Make figures and save them in the common style, within a block or a decorated function."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks
        yield


def save(figure: "Figure", target: Path, *, dpi: float) -> None:
    """Write a figure; the file's ending says in which format."""
    figure.savefig(target, dpi=dpi, metadata=UNDATED.get(target.suffix.lower()))
