"""Characters that could steer a terminal, made visible."""

import re

# C0 and C1 controls, what turns the direction of writing or breaks lines, and what no encoding can
# hold.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

CONTROL_PICTURES = 0x2400


def visible(text: str) -> str:
    """Return text whose control characters are symbols: it cannot steer a terminal."""
    return UNSAFE.sub(_symbol, text)


def escaped(text: str) -> str:
    """Return JSON that means the same and cannot steer a terminal."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(CONTROL_PICTURES + code) if code < ord(" ") else f"<U+{code:04X}>"
