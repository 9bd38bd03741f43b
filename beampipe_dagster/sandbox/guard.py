"""Finding and ending every process that carries a mark, even after its supervisor was killed.

The supervisor gives each child an environment variable, and whatever the child starts inherits it:
through a new session, a new process group or a double fork, where process groups and parent ids
lose the trail. Linux shows the environment that a process was started with in
``/proc/<pid>/environ``, and a pidfd (``pidfd_open(2)``) names a process safely between the look and
the signal.

Run as a program, this file is the supervisor's last resort: it reads its standard input, which only
the supervisor can write to, until the supervisor is gone, however it went, and then ends what
carries the mark. It uses the standard library alone, so that ``python -I -S`` starts it in a few
milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "BEAMPIPE_SUPERVISED"
"""The environment variable that carries the mark: ``<token>.<child's name>``."""

_PROC = Path("/proc")
_PAUSE = 0.02


def can_find() -> bool:
    """Whether this system shows the environments of processes (Linux does)."""
    return hasattr(os, "pidfd_open") and (_PROC / "self" / "environ").exists()


def marked(prefix: str) -> list[int]:
    """The living processes (not zombies) whose mark is *prefix* or begins with ``prefix.``."""
    if not can_find():
        return []
    return [pid for pid in _pids() if _carries(pid, prefix)]


def signal_marked(prefix: str, number: int) -> list[int]:
    """Send signal *number* to every process with the mark; the pids that it was sent to."""
    reached = []
    for pid in marked(prefix):
        with suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                # The pid may have become somebody else's between the look and the handle.
                if _carries(pid, prefix):
                    signal.pidfd_send_signal(handle, number)
                    reached.append(pid)
            finally:
                os.close(handle)
    return reached


def end_marked(prefix: str, grace: float) -> None:
    """SIGTERM to every process with the mark, and SIGKILL to what is left after *grace* seconds.

    Looks again until nothing is found, because a process may fork between the look and the signal.
    """
    deadline = time.monotonic() + grace
    if grace > 0:
        signal_marked(prefix, signal.SIGTERM)
        while time.monotonic() < deadline and marked(prefix):
            time.sleep(_PAUSE)
    # A process in an uninterruptible wait outlives SIGKILL for a while: do not look for ever.
    last = time.monotonic() + max(grace, 5.0)
    while signal_marked(prefix, signal.SIGKILL) and time.monotonic() < last:
        time.sleep(_PAUSE)


def _pids() -> list[int]:
    own = os.getpid()
    pids = (int(entry) for entry in os.listdir(_PROC) if entry.isdecimal())  # noqa: PTH208  # ints
    return [pid for pid in pids if pid != own]


def _carries(pid: int, prefix: str) -> bool:
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:  # it ended, or it is another user's
        return False
    for entry in environ.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == MARK.encode():
            wanted = prefix.encode()
            return value == wanted or value.startswith(wanted + b".")
    return False


def main(token: str, grace: str) -> None:
    """Wait for the end of standard input, then end everything that carries *token*."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    end_marked(token, float(grace))
    # A child that was being started when the supervisor died had no mark yet.
    time.sleep(0.2)
    end_marked(token, 0)


if __name__ == "__main__":
    main(*sys.argv[1:3])
