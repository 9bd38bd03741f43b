"""Texts that go to a terminal: harmless, short, and lengths of time that people can read."""

from __future__ import annotations

import re
from typing import Final

REASON_LENGTH: Final = 160
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def clean(text: object) -> str:
    """Text that may be shown: control characters of a log or an archive's answer do nothing to the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text).replace("\r\n", "\n"))


def shortened(text: str, length: int = REASON_LENGTH) -> str:
    """The text on one line, of at most ``length`` characters."""
    line = " ".join(clean(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def age_text(seconds: float) -> str:
    """A length of time in at most two units: ``4.2 s``, ``3m 05s``, ``2h 10m``, ``5d 3h``."""
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{max(0.0, seconds):.1f} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m {whole % _MINUTE:02d}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE:02d}m"
    return f"{whole // _DAY}d {whole % _DAY // _HOUR}h"


def short_key(key: str, identifier: str) -> str:
    """A partition key without the source's name, which stands beside it."""
    return key.removeprefix(identifier) if key.startswith(f"{identifier}@") else key
