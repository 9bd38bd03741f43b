"""Keeping a set of processes running, and leaving none behind.

A :class:`Supervisor` starts its children in stages, each in a session of its own, waits until they
serve, starts again what ends, and stops everything in the reverse order. What it started ends with
it in every case: by itself on a stop or an error, and by its guard process
(:mod:`beampipe_dagster.sandbox.guard`) when it was killed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BeampipeError, ConfigError
from beampipe_dagster.sandbox.children import Child, Guard
from beampipe_dagster.sandbox.process import ProcessSpec


class EventKind(StrEnum):
    """What happened to a child."""

    STARTING = "starting"
    READY = "ready"
    EXITED = "exited"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a child.

    Parameters
    ----------
    kind
        What happened.
    spec
        To which process.
    message
        The same in words, for a person.
    seconds
        Since its start for ``READY``; until its next start for ``EXITED``; else 0.
    """

    kind: EventKind
    spec: ProcessSpec
    message: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a supervisor is; all in seconds but ``max_restarts``.

    Parameters
    ----------
    ready_timeout
        From the start of a child until it serves.
    grace
        From SIGTERM to SIGKILL.
    backoff, backoff_cap
        Before the first restart, doubled for each further one in the window, and at most so much.
    max_restarts, window
        More restarts of one child than this within the window end everything.
    poll
        Between two looks.
    """

    ready_timeout: float = 90.0
    grace: float = 5.0
    backoff: float = 1.0
    backoff_cap: float = 30.0
    max_restarts: int = 5
    window: float = 600.0
    poll: float = 0.1


@dataclass(slots=True)
class _Slot:
    """The present state of one spec: its running child, or when to start it again."""

    spec: ProcessSpec
    child: Child | None = None
    started: float = 0.0
    ready: bool = False
    due: float = 0.0
    restarts: deque[float] = field(default_factory=deque)


class Supervisor:
    """Runs processes in stages until it is told to stop.

    Parameters
    ----------
    stages
        The processes; a stage is started when all of the stage before it serve.
    log_dir
        Directory of the logs, ``<name>.log`` each; the one of the run before is kept as
        ``<name>.log.1``.
    clock
        Time for the limits.
    on_event
        Called in the supervisor's thread with everything that happens; it must not raise.
    limits
        How patient it is.
    """

    def __init__(
        self,
        *,
        stages: Sequence[Sequence[ProcessSpec]],
        log_dir: Path,
        clock: Clock,
        on_event: Callable[[Event], None] = lambda _event: None,
        limits: Limits | None = None,
    ) -> None:
        self._stages = [[_Slot(spec) for spec in stage] for stage in stages]
        self._log_dir = log_dir
        self._clock = clock
        self._tell = on_event
        self._limits = limits or Limits()
        self._hurry = threading.Event()
        self._token = f"{os.getpid()}-{os.urandom(8).hex()}"
        self._guard: Guard | None = None
        names = [slot.spec.name for slot in self._slots()]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"Two processes of a supervisor have the same name: {sorted(names)}.",
                code="duplicate_process",
                hint="Give each process its own name; it names the log file.",
            )

    def __enter__(self) -> Self:
        """The supervisor itself; nothing is started yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop whatever runs."""
        self.shut_down()

    def start(
        self,
        *,
        after_stage: Callable[[int], None] | None = None,
        stop: threading.Event | None = None,
    ) -> bool:
        """Start all stages.

        Parameters
        ----------
        after_stage
            Called with the stage's index (from 0) when all of it serves.
        stop
            When set, the start is given up.

        Returns
        -------
        bool
            Whether everything serves; ``False`` only when *stop* was set.

        Raises
        ------
        BeampipeError
            ``process_failed`` or ``process_not_ready``, with the end of the child's log in its
            hint. Everything has been stopped.
        """
        stop = stop or threading.Event()
        try:
            self._guard = self._guard or Guard(token=self._token, grace=self._limits.grace)
            for index, stage in enumerate(self._stages):
                for slot in stage:
                    self._rotate(slot)
                    self._launch(slot)
                while not all(self._became_ready(slot) for slot in stage):
                    if stop.is_set():
                        return False
                    self._clock.sleep(self._limits.poll)
                if after_stage is not None:
                    after_stage(index)
                if stop.is_set():
                    return False
        except BaseException:
            self.shut_down()
            raise
        return True

    def watch(self, stop: threading.Event) -> None:
        """Keep everything running until *stop* is set.

        Raises
        ------
        BeampipeError
            ``process_gave_up``: a child ended too often, or one that is not to be restarted ended.
            Everything has been stopped.
        """
        try:
            while not stop.is_set():
                self.look()
                self._clock.sleep(self._limits.poll)
        except BaseException:
            self.shut_down()
            raise

    def look(self) -> None:
        """One look at every child: restart what is due, and account for what ended."""
        if self._guard is not None:
            self._guard.watch()
        for slot in self._slots():
            if slot.child is None:
                if slot.due <= self._clock.monotonic():
                    self._launch(slot)
                continue
            code = slot.child.exit_code()
            if code is not None:
                self._ended(slot, slot.child, _how_it_ended(code))
            elif not slot.ready and self._probe(slot, slot.child) is None:
                self._ended(slot, slot.child, self._not_ready())

    def shut_down(self) -> None:
        """Stop everything, the last stage first. Safe to call again."""
        for stage in reversed(self._stages):
            self._stop(stage)
        if self._guard is not None:
            self._guard.release()
            self._guard = None

    def hurry(self) -> None:
        """Stop without grace from now on; may be called from a signal handler or another thread."""
        self._hurry.set()

    def pids(self) -> dict[str, int]:
        """The process id of every running child, by name."""
        return {slot.spec.name: slot.child.pid for slot in self._slots() if slot.child is not None}

    def _slots(self) -> Iterator[_Slot]:
        for stage in self._stages:
            yield from stage

    def _log(self, slot: _Slot) -> Path:
        return self._log_dir / f"{slot.spec.name}.log"

    def _rotate(self, slot: _Slot) -> None:
        log = self._log(slot)
        with suppress(FileNotFoundError):
            log.replace(log.with_name(f"{log.name}.1"))

    def _launch(self, slot: _Slot) -> None:
        mark = f"{self._token}.{slot.spec.name}"
        self._event(EventKind.STARTING, slot, f"Starting {slot.spec.describe}")
        slot.child = Child(spec=slot.spec, mark=mark, log_path=self._log(slot))
        slot.started = self._clock.monotonic()
        slot.ready = False

    def _became_ready(self, slot: _Slot) -> bool:
        """Whether a child of the starting stage serves; an error when it never will."""
        child = slot.child
        if slot.ready or child is None:
            return slot.ready
        code = child.exit_code()
        if code is not None:
            child.end_rest()
            raise self._failure(slot, f"{_how_it_ended(code)} before it was ready", code="process_failed")
        ready = self._probe(slot, child)
        if ready is None:
            raise self._failure(slot, self._not_ready(), code="process_not_ready")
        return ready

    def _probe(self, slot: _Slot, child: Child) -> bool | None:
        """Whether the child serves; ``None`` when its time to get there is over."""
        seconds = self._clock.monotonic() - slot.started
        # Asked before the time is looked at: a slow machine gets the benefit of the doubt.
        if child.spec.ready():
            slot.ready = True
            self._event(EventKind.READY, slot, f"{_named(slot)} is ready", seconds)
            return True
        return None if seconds > self._limits.ready_timeout else False

    def _not_ready(self) -> str:
        return f"was not ready after {self._limits.ready_timeout:g} s"

    def _ended(self, slot: _Slot, child: Child, how: str) -> None:
        """Account for a child that ended: plan its restart, or give up."""
        child.end_rest()
        now = self._clock.monotonic()
        while slot.restarts and slot.restarts[0] < now - self._limits.window:
            slot.restarts.popleft()
        if not slot.spec.restart:
            raise self._failure(slot, f"{how}, and it is not restarted", code="process_gave_up")
        if len(slot.restarts) >= self._limits.max_restarts:
            often = f"{how}, after {len(slot.restarts)} restarts in {self._limits.window / 60:g} min"
            raise self._failure(slot, often, code="process_gave_up")
        wait = min(self._limits.backoff * 2 ** len(slot.restarts), self._limits.backoff_cap)
        slot.restarts.append(now)
        slot.child, slot.due = None, now + wait
        message = f"{_named(slot)} {how}; it is restarted in {wait:g} s (log: {self._log(slot)})"
        self._event(EventKind.EXITED, slot, message, wait)

    def _failure(self, slot: _Slot, what: str, *, code: str) -> BeampipeError:
        log = self._log(slot)
        tail = slot.child.log_tail() if slot.child is not None else ""
        ends = f"Its log {log} ends with:\n{tail}" if tail else f"Its log {log} is empty."
        return BeampipeError(
            f"{_named(slot)} {what}.",
            code=code,
            hint=ends,
            details={"process": slot.spec.name, "log": str(log)},
        )

    def _stop(self, stage: Sequence[_Slot]) -> None:
        """Stop the children of a stage at once: SIGTERM, the grace, SIGKILL."""
        running = [(slot, slot.child) for slot in reversed(stage) if slot.child is not None]
        for slot, child in running:
            self._event(EventKind.STOPPING, slot, f"Stopping {slot.spec.describe}")
            child.terminate()
        deadline = self._clock.monotonic() + self._limits.grace
        while not all(child.gone() for _, child in running):
            if self._hurry.is_set() or self._clock.monotonic() >= deadline:
                break
            self._clock.sleep(min(self._limits.poll, 0.05))
        for slot, child in running:
            child.end_rest()
            slot.child, slot.ready = None, False
            self._event(EventKind.STOPPED, slot, f"Stopped {slot.spec.describe}")

    def _event(self, kind: EventKind, slot: _Slot, message: str, seconds: float = 0.0) -> None:
        self._tell(Event(kind=kind, spec=slot.spec, message=message, seconds=seconds))


@contextmanager
def stop_on_signals(stop: threading.Event, *, again: Callable[[], None]) -> Iterator[None]:
    """Set *stop* on SIGINT, SIGTERM or SIGHUP, and call *again* when another one comes.

    Outside the main thread, where Python has no signal handlers, this does nothing.
    """

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            again()
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _named(slot: _Slot) -> str:
    return f"{slot.spec.describe} ({slot.spec.name})"


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
