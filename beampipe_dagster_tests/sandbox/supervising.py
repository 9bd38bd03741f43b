"""Tiny real processes for the tests of the supervisor."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from beampipe_dagster.sandbox.process import ProcessSpec

SERVE = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
"""Touches the file that it is given, which makes it ready, and stays."""


def spec(
    name: str,
    code: str = SERVE,
    *,
    folder: Path,
    tag: str = "",
    restart: bool = True,
    ready: Callable[[], bool] | None = None,
) -> ProcessSpec:
    """A Python child; its arguments are its readiness file and the tag to find it by."""
    flag = folder / f"{name}.ready"
    return ProcessSpec(
        name=name,
        argv=(sys.executable, "-I", "-S", "-c", code, str(flag), tag),
        env={},
        cwd=folder,
        ready=ready or flag.exists,
        describe=f"the {name} process",
        restart=restart,
    )


def tagged(tag: str) -> set[int]:
    """The living processes with *tag* in their command line, as the system tells."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if tag.encode() in command:
                found.add(int(entry.name))
    return found


def parent(pid: int) -> int:
    """The parent of a process; 0 when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def eventually(condition: Callable[[], bool], *, seconds: float = 20.0) -> bool:
    """Whether *condition* becomes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
