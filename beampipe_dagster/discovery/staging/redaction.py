"""Texts without the parts of URLs that let somebody in."""

from __future__ import annotations

import re
from typing import Any, Final

from beampipe_dagster.errors import BeampipeError

# From a question mark, which may be percent-quoted, to the end of the word: also without the URL's beginning, since
# clients name relative ones.
_QUERY: Final = re.compile(r"(?:\?|%3F)[^\s'\"<>)\\]{2,}", re.IGNORECASE)
_USER: Final = re.compile(r"(?P<scheme>\bhttps?://)[^/\s@?]{1,200}@", re.IGNORECASE)


def hidden(text: str) -> str:
    """The text with ``?...`` in the place of each URL's query, and without users and passwords in URLs."""
    return _QUERY.sub(_shown, _USER.sub(r"\g<scheme>***@", text))


def place(url: str) -> str:
    """A URL as a message may show it: without its query, its fragment and its user."""
    return hidden(url.partition("#")[0].partition("?")[0])


def conceal(error: BeampipeError) -> None:
    """Hide the queries of URLs in an error that is on its way: a service may repeat what it was given."""
    error.message = hidden(error.message)
    error.args = (error.message,)
    error.details = {key: _concealed(value) for key, value in error.details.items()}


def _shown(match: re.Match[str]) -> str:
    query = match[0]
    return "?..." if "=" in query or "%3d" in query.lower() else query


def _concealed(value: Any) -> Any:  # noqa: ANN401  # JSON
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, dict):
        return {key: _concealed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_concealed(inner) for inner in value]
    return value
