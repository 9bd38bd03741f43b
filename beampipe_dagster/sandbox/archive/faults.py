"""Switches that make an archive fail in the ways that real ones do.

The switches of each archive are kept in ``faults.json`` in the data directory, so that a restart keeps them.
"""

from __future__ import annotations

import json
import os
import random
import threading
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from beampipe_dagster.errors import ConfigError, InputError, NotFoundError
from beampipe_dagster.sandbox.archive.columns import ARCHIVES, Archive

BUSY_TEXT = "TAP service too busy! No connection available for the moment."

_BOUNDS: tuple[tuple[str, float, float, bool], ...] = (
    ("latency", 0, 300, False),
    ("error_rate", 0, 1, False),
    ("seed", 0, 2**31, True),
    ("status", 400, 599, True),
    ("retry_after", 0, 3_600, True),
    ("overflow", 0, 1_000_000, True),
    ("count", 1, 1_000_000, True),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """How an archive misbehaves; the default is that it does not.

    Parameters
    ----------
    latency
        Seconds before anything else happens, 0 to 300.
    error_rate
        Share of the queries, 0 to 1, that the other switches hit; 1 when left out with one of them on.
        Alone, it answers that share with HTTP 500.
    seed
        Makes the choice of the queries the same each time.
    status
        Answer with this HTTP status, 400 to 599; a 503 carries ``Retry-After``.
    retry_after
        Seconds of ``Retry-After``.
    busy
        Answer with an error VOTable with this text, HTTP 503 or ``status``.
    overflow
        Cut the answer after this many rows and say OVERFLOW.
    empty
        Answer completely, but without rows.
    html
        Answer with a page for people, HTTP 200.
    truncated
        Stop in the middle of the body and close.
    down
        Close the connection without an answer.
    count
        How many queries are hit before the switches turn themselves off.
    """

    latency: float = 0.0
    error_rate: float | None = None
    seed: int = 0
    status: int | None = None
    retry_after: int = 1
    busy: str | None = None
    overflow: int | None = None
    empty: bool = False
    html: bool = False
    truncated: bool = False
    down: bool = False
    count: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The switches that are on, for the log."""
        on = (
            ("latency", self.latency > 0),
            ("status", self.status is not None and self.busy is None),
            ("busy", self.busy is not None),
            ("overflow", self.overflow is not None),
            ("empty", self.empty),
            ("html", self.html),
            ("truncated", self.truncated),
            ("down", self.down),
        )
        return tuple(name for name, is_on in on if is_on)

    def as_dict(self) -> dict[str, Any]:
        """The switches that are not at their defaults."""
        default = Fault()
        return {k: v for k, v in asdict(self).items() if v != getattr(default, k)}


NO_FAULT = Fault()


def parse_fault(value: object) -> Fault:
    """Switches from JSON.

    Raises
    ------
    InputError
        ``invalid_fault`` naming the switch.
    """
    if not isinstance(value, dict):
        raise _invalid("", value, "Send a JSON object of switches.")
    known = {each.name for each in fields(Fault)}
    unknown = next((name for name in value if name not in known), None)
    if unknown is not None:
        raise _invalid(str(unknown), value[unknown], f"Switches: {', '.join(sorted(known))}.")
    given = {name: each for name, each in value.items() if each is not None}
    for name in ("empty", "html", "truncated", "down"):
        if not isinstance(given.get(name, False), bool):
            raise _invalid(name, given[name], "Send true or false.")
    if "busy" in given and (text := _busy_text(given.pop("busy"))):
        given["busy"] = text
    for name, low, high, whole in _BOUNDS:
        if name in given:
            _check_number(name, given[name], low, high, whole=whole)
    return Fault(**given)


def _busy_text(value: object) -> str | None:
    if isinstance(value, bool):
        return BUSY_TEXT if value else None
    if not isinstance(value, str) or not 1 <= len(value) <= 1_000:
        raise _invalid("busy", value, "Send true, or a text of 1 to 1000 characters.")
    return value


class FaultSwitches:
    """The switches of both archives; safe to use from several threads.

    Parameters
    ----------
    path
        The file in which they are kept; it need not exist.

    Raises
    ------
    ConfigError
        ``invalid_fault_file`` when the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._faults: dict[Archive, Fault] = dict.fromkeys(ARCHIVES, NO_FAULT)
        self._seen: dict[Archive, int] = dict.fromkeys(ARCHIVES, 0)
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text("utf-8"))
            self._faults = {name: parse_fault(stored.get(name, {})) for name in ARCHIVES}
        except (OSError, ValueError, AttributeError, InputError) as error:
            raise ConfigError(
                f"The fault switches in {path} cannot be read: {error}",
                code="invalid_fault_file",
                hint="Delete the file: without it all switches are off.",
            ) from error

    def get(self, archive: Archive) -> Fault:
        """An archive's switches as they stand."""
        return self._faults[archive]

    def set(self, archive: str, value: object) -> Fault:
        """Replace an archive's switches by those of a JSON object.

        Raises
        ------
        NotFoundError
            ``unknown_archive``.
        InputError
            ``invalid_fault`` naming the switch.
        """
        name, fault = check_archive(archive), parse_fault(value)
        with self._lock:
            self._faults[name] = fault
            self._seen[name] = 0
            self._save()
        return fault

    def clear(self, archive: str | None = None) -> None:
        """Turn the switches of one archive off, or of all."""
        names = ARCHIVES if archive is None else (check_archive(archive),)
        with self._lock:
            for name in names:
                self._faults[name] = NO_FAULT
                self._seen[name] = 0
            self._save()

    def take(self, archive: Archive) -> Fault:
        """What happens to the next query; a counted fault has one less to go afterwards."""
        with self._lock:
            fault = self._faults[archive]
            if fault == NO_FAULT:
                return fault
            self._seen[archive] += 1
            if not self._hits(fault, self._seen[archive]):
                return Fault(latency=fault.latency)
            if fault.count is not None:
                left = fault.count - 1
                self._faults[archive] = replace(fault, count=left) if left else NO_FAULT
                self._save()
        only_rate = not set(fault.names) - {"latency"} and fault.error_rate is not None
        return replace(fault, status=500) if only_rate else fault

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The switches that are on, by archive."""
        return {name: self._faults[name].as_dict() for name in ARCHIVES}

    @staticmethod
    def _hits(fault: Fault, number: int) -> bool:
        if fault.error_rate is None:
            return True
        # Seeded by the query's number: the same queries are hit in every run.
        return random.Random(f"{fault.seed}:{number}").random() < fault.error_rate  # noqa: S311  # a test's dice

    def _save(self) -> None:
        partial = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            partial.write_text(json.dumps(self.as_dict(), indent=2) + "\n", "utf-8")
            partial.replace(self._path)
        except OSError as error:
            raise ConfigError(
                f"The fault switches cannot be kept in {self._path}: {error}",
                code="invalid_fault_file",
                hint="They are set, but a restart will not know them: make the directory writable.",
            ) from error


def check_archive(name: str) -> Archive:
    """The archive of that name.

    Raises
    ------
    NotFoundError
        ``unknown_archive``.
    """
    found = next((archive for archive in ARCHIVES if archive == name), None)
    if found is None:
        raise NotFoundError(
            f"There is no archive {name[:60]!r}.",
            code="unknown_archive",
            hint=f"Use one of {', '.join(ARCHIVES)}.",
        )
    return found


def _check_number(name: str, value: object, low: float, high: float, *, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise _invalid(name, value, f"Send a {kind} from {low:g} to {high:g}.")


def _invalid(name: str, value: object, hint: str) -> InputError:
    what = f"The switch {name[:60]}={str(value)[:80]!r}" if name else f"{str(value)[:80]!r}"
    return InputError(f"{what} cannot be set.", code="invalid_fault", hint=hint)
