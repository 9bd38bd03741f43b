"""Texts and documents without what lets somebody in: keys, passwords, tokens, by their names and by their shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from beampipe_dagster.config.canonical import JsonValue

REDACTED: Final = "[REDACTED]"
_WORDS: Final = (
    r"(?:passw(?:or)?d|passphrase|passcode|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|signature)"
)
_KEY: Final = re.compile(_WORDS + r"s?$|^authorization$|^cookie$", re.IGNORECASE)
_PEM: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}KEY-----.{0,20000}?(?:-----END [A-Z0-9 ]{0,40}KEY-----|\Z)", re.DOTALL
)
_ASSIGNED: Final = re.compile(
    r"(?P<name>[\w.-]{0,60}" + _WORDS + r"s?\s{0,3}[=:]\s{0,3})(?P<quote>[\"']?)[^\s\"'&;,]{1,4000}",
    re.IGNORECASE,
)
_BEARER: Final = re.compile(r"\b(?P<word>bearer|basic)\s{1,3}[A-Za-z0-9._~+/=-]{3,}", re.IGNORECASE)
_USER: Final = re.compile(r"(?P<scheme>://)[^/\s:@]{0,200}:[^/\s@]{1,200}@")


def redacted(text: str) -> str:
    """The text with ``[REDACTED]`` in the place of private keys, assigned secrets, tokens and URLs' passwords."""
    text = _PEM.sub(REDACTED, text)
    text = _BEARER.sub(rf"\g<word> {REDACTED}", text)
    text = _ASSIGNED.sub(rf"\g<name>\g<quote>{REDACTED}", text)
    return _USER.sub(rf"\g<scheme>{REDACTED}@", text)


def redacted_value(value: JsonValue) -> JsonValue:
    """A document with its texts redacted, and whole what a key such as ``password`` holds."""
    if isinstance(value, dict):
        return {
            key: REDACTED if _KEY.search(key) and inner is not None else redacted_value(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [redacted_value(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value


def secret_paths(value: JsonValue, path: str = "") -> Iterator[str]:
    """Where a document holds what a key such as ``password`` names: ``a.b[0].c``, in its order."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else key
            if _KEY.search(key) and inner is not None:
                yield here
            else:
                yield from secret_paths(inner, here)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from secret_paths(inner, f"{path}[{index}]")
