"""What a supervisor must know about one process of the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process: how to start it, and how to see that it serves.

    Attributes
    ----------
    name
        Short name, unique in a supervisor: of log files and messages.
    argv
        The command and its arguments; ``argv[0]`` is an absolute path.
    env
        Variables to set over the supervisor's own environment.
    cwd
        Where it runs; exists.
    ready
        Whether *this* process serves now. Answers within a few seconds and never raises; another
        program on the same port is not ready.
    describe
        One line for the operator: what it is and where it listens.
    restart
        Whether it is started again when it ends; otherwise its end ends everything.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    ready: Callable[[], bool]
    describe: str
    restart: bool = True
