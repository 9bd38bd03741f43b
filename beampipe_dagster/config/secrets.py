"""Text that looks like a secret, in files that are stored, shown and shared.

Project files and profiles go into the ledger, into logs and over colleagues' screens; what is secret in
them is not for long. This finds the usual shapes; it proves nothing about a file in which it finds none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.config.yaml_loader import Path

_WORDS: Final = (
    r"(?:passw(?:or)?d|passphrase|passcode|secret|token|api[_-]?key|access[_-]?key|private[_-]?key)"
)
# Every pattern begins with fixed text and repeats within bounds, so that no text takes long.
_SHAPES: Final = (
    ("a private key", re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----")),
    ("a URL with a password", re.compile(r"://[^/\s:@]{0,200}:[^/\s@$]{1,200}@")),
    ("an access token", re.compile(r"\b(?:gh[opsu]_|github_pat_|glpat-|xox[abprs]-)[A-Za-z0-9_-]{16,}")),
    ("an access key", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    ("a JSON web token", re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")),
    ("a bearer token", re.compile(r"\bbearer\s{1,3}(?!\$)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)),
    # `TOKEN=abc`, `--password abc`, but not `TOKEN=$VARIABLE`, `TOKEN={variable}` or `TOKEN=<yours>`.
    (
        "a password or a token",
        re.compile(_WORDS + r"\s{0,3}=\s{0,3}[\"']?(?![$`<{\"'])[^\s\"'=]", re.IGNORECASE),
    ),
    ("a password or a token", re.compile("--" + _WORDS + r"\s{1,3}[\"']?(?![$`<{\"'-])\S", re.IGNORECASE)),
)
_SECRET_KEY: Final = re.compile(rf"(?:^|[_-]|[a-z](?=[A-Z])){_WORDS}s?$|^authorization$", re.IGNORECASE)


def secret_in(text: str) -> str | None:
    """What a text looks like: the name of a kind of secret, or ``None``."""
    return next((kind for kind, shape in _SHAPES if shape.search(text)), None)


def find_secrets(value: JsonValue, *, keys: bool) -> Iterator[tuple[Path, str]]:
    """Paths of what looks like a secret, in the order of the document, each with its kind.

    Parameters
    ----------
    value
        A document.
    keys
        Whether a key such as ``password`` makes its text a secret, whatever the text is. Not for
        documents whose keys are names that people choose.
    """
    pending: list[tuple[Path, JsonValue]] = [((), value)]
    while pending:
        path, here = pending.pop()
        if isinstance(here, dict):
            pending.extend(((*path, key), inner) for key, inner in reversed(here.items()))
        elif isinstance(here, list):
            pending.extend(((*path, index), here[index]) for index in range(len(here) - 1, -1, -1))
        elif isinstance(here, str) and here.strip():
            kind = secret_in(here)
            if (
                kind is None
                and keys
                and any(isinstance(step, str) and _SECRET_KEY.search(step) for step in path)
            ):
                kind = "a secret by its name"
            if kind is not None:
                yield path, kind
