"""Names of splits, and which split a file's name or folder says."""

import re
from pathlib import PurePath

_SPLITS = {
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "training": "train",
    "testing": "test",
}

# What a file's name may say beside them
_IN_NAMES = {
    **_SPLITS,
    **{name: name for name in ("train", "dev", "test")},
    "development": "dev",
    "eval": "test",
    "evaluation": "test",
}

_WORD = re.compile(r"[a-z]+")


def split_name(name: str) -> str:
    """Return DATA's name of a split: validation is dev there."""
    return _SPLITS.get(name.strip().lower(), name.strip())


def split_of_file(file: PurePath, *, inside: PurePath | None = None) -> str | None:
    """Return the split that a file's name says, or else the nearest folder; None for none.

    As the Hub's patterns have it: `train`, `validation-00000-of-00003`, `my_test`, `dev/part-1`.
    A name that says two of them says none.

    Args:
        file: its path.
        inside: the folder that was given; those above it say nothing.
    """
    parents = file.relative_to(inside).parts[:-1] if inside else ()
    for name in (file.name, *reversed(parents)):
        splits = {_IN_NAMES[word] for word in _WORD.findall(name.lower()) if word in _IN_NAMES}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None
