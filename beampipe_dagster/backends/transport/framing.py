"""A command between two marks, so that nothing that a login shell prints is taken for its output.

The remote side prints the first mark, waits for one line of input that repeats the token, runs the command, and
prints the second mark with the exit status in it. Until the line was sent nothing has run, and without the second
mark nobody knows how the command ended: that is how a lost connection is told from a command that failed.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final

# No line break in it: a shell that is no Bourne shell reads it first. $0 is the token, $1 the command.
_SCRIPT: Final = (
    "m=$(printf '@@%s' \"$0\"); printf '\\n%s@@\\n' \"$m\"; printf '\\n%s@@\\n' \"$m\" >&2; IFS= read -r go; "
    'if [ "$go" != "$0" ]; then exit 125; fi; '
    '/bin/sh -c "$1"; rc=$?; printf \'\\n%s %s@@\\n\' "$m" "$rc"; exit "$rc"'
)


@dataclass(frozen=True, slots=True)
class Framed:
    """What was between the marks.

    Attributes
    ----------
    output
        The command's own output so far.
    exit_status
        From the second mark; ``None`` while it has not come.
    """

    output: bytes
    exit_status: int | None


def framed(command: str, token: str) -> str:
    """The line that a login shell is given.

    Parameters
    ----------
    command
        For ``/bin/sh -c``; it reads what follows the token on the standard input.
    token
        Letters, digits and ``-`` that are in no other output.
    """
    return f"exec /bin/sh -c {shlex.quote(_SCRIPT)} {shlex.quote(token)} {shlex.quote(command)}"


def go(token: str) -> bytes:
    """The line of input that lets the command run."""
    return token.encode() + b"\n"


def begin_mark(token: str) -> bytes:
    """The line before the command's output, on standard output and on standard error."""
    return b"\n@@" + token.encode() + b"@@\n"


def unframe(data: bytes, token: str) -> Framed | None:
    """Read what has come; ``None`` while the first mark is not in it."""
    before, mark, rest = data.partition(begin_mark(token))
    del before
    if not mark:
        return None
    end = re.search(rb"\n@@" + re.escape(token.encode()) + rb" ([0-9]{1,3})@@\n", rest)
    return Framed(rest, None) if end is None else Framed(rest[: end.start()], int(end[1]))


def after_mark(data: bytes, token: str) -> bytes:
    """Standard error without what was printed before the first mark."""
    _, mark, rest = data.partition(begin_mark(token))
    return rest if mark else data
