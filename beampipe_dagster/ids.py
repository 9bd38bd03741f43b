"""Identifiers as a dependency: time-ordered UUIDs in production, a counter in tests."""

from __future__ import annotations

import os
import time
import uuid
from itertools import count
from typing import Protocol


class Ids(Protocol):
    """What services ask for a new identifier."""

    def new(self) -> str:
        """A new identifier, unique and in UUID form."""
        ...


class UuidIds:
    """UUID version 7 (RFC 9562): rows sort by the time at which they were made."""

    def new(self) -> str:
        """48 bits of Unix milliseconds, then random bits."""
        value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
        value = value & ~(0xF << 76) | 0x7 << 76
        value = value & ~(0x3 << 62) | 0x2 << 62
        return str(uuid.UUID(int=value))


class SequenceIds:
    """Counts up: ``00000000-0000-7000-8000-000000000001`` and so on; for tests."""

    def __init__(self) -> None:
        self._next = count(1)

    def new(self) -> str:
        """The next identifier of the sequence."""
        return f"00000000-0000-7000-8000-{next(self._next):012x}"
