"""One child process in its own session, and the guard that outlives the supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.sandbox import guard
from beampipe_dagster.sandbox.process import ProcessSpec

# A program that was started in the background by a shell without job control (a script, CI, nohup)
# inherits "ignore SIGINT", and so do its children: they could then not be interrupted. Only an exec
# after a reset undoes that, and a preexec_fn is not safe in a process with threads.
_LAUNCHER: Final = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"cannot start {sys.argv[1]}: {error.strerror}")
"""

_KEPT_BYTES: Final = 16_384


class Child:
    """A running (or just ended) child process.

    Parameters
    ----------
    spec
        What to run.
    mark
        The value of :data:`guard.MARK` in its environment; unique to this child.
    log_path
        Where its standard output and standard error are appended to.
    """

    def __init__(self, *, spec: ProcessSpec, mark: str, log_path: Path) -> None:
        self.spec = spec
        self.log_path = log_path
        self._mark = mark
        try:
            with log_path.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603  # the specs are the project's own
                    [sys.executable, "-I", "-S", "-c", _LAUNCHER, *spec.argv],
                    env={**os.environ, **spec.env, guard.MARK: mark},
                    cwd=spec.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise BeampipeError(
                f"{spec.describe} ({spec.name}) cannot be started in {spec.cwd}: {error.strerror}.",
                code="process_failed",
                hint=f"Check that the directory and the log file {log_path} can be used.",
            ) from error

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its session and process group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """The code that the process ended with (negative: the signal), ``None`` while it runs.

        It is not reaped here, so that its group's number stays its own until :meth:`end_rest`.
        """
        if self._process.returncode is not None:
            return self._process.returncode
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def gone(self) -> bool:
        """Whether the process and everything that it started have ended."""
        return self.exit_code() is not None and not guard.marked(self._mark)

    def terminate(self) -> None:
        """Ask it and everything that it started to end."""
        self._signal(signal.SIGTERM)

    def end_rest(self) -> int:
        """Kill whatever is left of it and reap it; its exit code."""
        self._signal(signal.SIGKILL)
        guard.end_marked(self._mark, grace=0)
        return self._process.wait()

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        return log_tail(self.log_path, lines)

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
        guard.signal_marked(self._mark, number)


class Guard:
    """The process that ends all children when the supervisor is gone, however it went.

    Parameters
    ----------
    token
        The beginning of the marks of all children.
    grace
        Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, *, token: str, grace: float) -> None:
        self._command = [sys.executable, "-I", "-S", guard.__file__, token, str(grace)]
        self._process = self._start()

    def watch(self) -> None:
        """Start the guard again when somebody killed it."""
        if self._process.poll() is not None:
            self._close()
            self._process = self._start()

    def release(self) -> None:
        """Let the guard look one last time and end."""
        self._close()
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        # Its own session: neither Ctrl-C nor a signal to the supervisor's process group ends it.
        environment = {key: value for key, value in os.environ.items() if key != guard.MARK}
        return subprocess.Popen(  # noqa: S603  # this package's own file
            self._command,
            env=environment,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _close(self) -> None:
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


def log_tail(path: Path, lines: int = 12) -> str:
    """The last *lines* lines of a log file, or an empty text when it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _KEPT_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])
