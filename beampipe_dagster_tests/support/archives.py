"""Archives in memory: they keep deposits, answer queries about one source, and fail as they are told."""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archive import (
    CONSERVATIVE,
    DEFAULT_MAXREC,
    Answer,
    AnswerClass,
    Evidence,
    Mode,
    TapCapabilities,
    Upload,
    archive_error,
)
from beampipe_dagster.errors import ConfigError

Row = dict[str, JsonValue]
INCOMPLETE = tuple(one for one in AnswerClass if one is not AnswerClass.COMPLETE)
_LITERAL = re.compile(r"'([^']*)'")
_MANY = re.compile(r"IN \(('[^']*'(?:, '[^']*')*)\)")


def quiet(_adapter: str, _source: str) -> None:
    """What happens at a query by default: nothing."""


class FakeArchives:
    """The archives ``casda`` (datasets) and ``vizier`` (a catalogue).

    Parameters
    ----------
    clock
        Time of the evidence.
    rate
        Probability with which a query gets an incomplete answer; seeded, so that it is always the same.

    Attributes
    ----------
    queries
        How often each source was asked about alone, by archive.
    batches
        How many queries were about several sources, by archive.
    on_query
        Called with the archive and the source before an answer is given.
    capabilities
        What the archives can do; a query with an upload, or a job, needs an archive that can.
    modes
        How the queries were sent, in their order.
    """

    def __init__(self, *, clock: Clock, rate: float = 0.0, seed: int = 1) -> None:
        self.clock = clock
        self.queries: Counter[tuple[str, str]] = Counter()
        self.batches: Counter[str] = Counter()
        self.on_query: Callable[[str, str], None] = quiet
        self.capabilities: TapCapabilities = CONSERVATIVE
        self.modes: list[Mode] = []
        self._rate = rate
        self._random = random.Random(seed)
        self._rows: dict[tuple[str, str], list[Row]] = {}
        self._faults: dict[tuple[str, str], list[AnswerClass | Exception]] = {}
        self._lock = threading.Lock()

    def deposit(self, source: str, sbid: int, *, beams: int = 1, **fields: JsonValue) -> None:
        """Add the datasets of a scheduling block."""
        for beam in range(beams):
            name = f"{source}_SB{sbid}_beam{beam:02}.tar"
            row: Row = {
                "filename": name,
                "target": source,
                "obs_id": f"ASKAP-{sbid}",
                "access_url": f"https://casda.example/{name}",
                **fields,
            }
            self._rows.setdefault(("casda", source), []).append(row)
        self.catalogue(source)

    def withdraw(self, source: str, sbid: int | None = None) -> None:
        """Remove a scheduling block's datasets, or all of the source's."""
        rows = self._rows.get(("casda", source), [])
        kept = [row for row in rows if sbid is not None and row["obs_id"] != f"ASKAP-{sbid}"]
        self._rows["casda", source] = kept

    def change(self, source: str, **fields: JsonValue) -> None:
        """Change columns of all of the source's datasets."""
        for row in self._rows["casda", source]:
            row.update(fields)

    def catalogue(self, source: str, *, known: bool = True) -> None:
        """Whether the catalogue has the source."""
        self._rows["vizier", source] = [{"name": source, "velocity": "570.0"}] if known else []

    def fail(self, source: str, *faults: AnswerClass | Exception, adapter: str = "casda") -> None:
        """The next queries about a source are answered incompletely, or break in another way."""
        self._faults.setdefault((adapter, source), []).extend(faults)

    def get(self, config: ProjectConfig, adapter: str) -> FakeArchive:
        """The archive of this name."""
        del config
        if adapter not in {"casda", "vizier"}:
            raise ConfigError(f"no archive {adapter!r}", code="archive_not_configured")
        return FakeArchive(self, adapter)

    def answer(self, adapter: str, adql: str, upload: Upload | None = None) -> Answer:
        if upload is not None:
            asked = [cell for row in upload.rows for cell in row]
            return self._answer_many(adapter, adql, list(dict.fromkeys(asked)))
        match = _LITERAL.search(adql)
        assert match is not None, adql
        if (many := _MANY.search(adql)) is not None:
            return self._answer_many(adapter, adql, _LITERAL.findall(many[1]))
        source = match[1]
        self.on_query(adapter, source)
        with self._lock:
            self.queries[adapter, source] += 1
            faults = self._faults.get((adapter, source))
            fault = faults.pop(0) if faults else None
            if fault is None and self._random.random() < self._rate:
                fault = self._random.choice(INCOMPLETE)
            rows = [dict(row) for row in self._rows.get((adapter, source), [])]
        if isinstance(fault, Exception):
            raise fault
        return self._answered(adapter, adql, rows, fault)

    def _answer_many(self, adapter: str, adql: str, asked: list[str]) -> Answer:
        """As for one; what is wrong with any of them is wrong with the whole, and stays for the next query."""
        with self._lock:
            self.batches[adapter] += 1
            waiting = [self._faults[adapter, one] for one in asked if self._faults.get((adapter, one))]
            fault = waiting[0][0] if waiting else None
            if fault is None and self._random.random() < self._rate:
                fault = self._random.choice(INCOMPLETE)
            rows = [dict(row) for one in asked for row in self._rows.get((adapter, one), [])]
        if isinstance(fault, Exception):
            raise fault
        return self._answered(adapter, adql, rows, fault)

    def _answered(self, adapter: str, adql: str, rows: list[Row], fault: AnswerClass | None) -> Answer:
        evidence = Evidence(
            adapter=adapter,
            url=f"https://{adapter}.example/tap",
            query_sha256=hashlib.sha256(adql.encode()).hexdigest(),
            started_at=self.clock.now(),
            seconds=0.1,
            rows=len(rows),
            answer=fault or AnswerClass.COMPLETE,
        )
        if fault is not None:
            raise archive_error("as the test wants it", evidence)
        return Answer(rows, evidence)


@dataclass(frozen=True)
class FakeArchive:
    """One of the archives."""

    archives: FakeArchives
    adapter: str

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """A complete answer, or the error that the test wants.

        With an upload the rows are those of the sources that its cells name.
        """
        return self._answer(adql, maxrec, upload, "sync")

    def query_async(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """As :meth:`query`, where the archive has jobs."""
        return self._answer(adql, maxrec, upload, "async")

    def capabilities(self) -> TapCapabilities:
        """What the test set."""
        return self.archives.capabilities

    def _answer(self, adql: str, maxrec: int, upload: Upload | None, mode: Mode) -> Answer:
        found = self.archives.capabilities
        assert upload is None or found.upload, "the archive takes no uploads"
        assert mode == "sync" or found.async_, "the archive has no jobs"
        self.archives.modes.append(mode)
        answer = self.archives.answer(self.adapter, adql, upload)
        limit = min(maxrec, found.hard_maxrec or maxrec)
        over = len(answer.rows) >= limit
        evidence = replace(
            answer.evidence,
            mode=mode,
            answer=AnswerClass.OVERFLOW if over else AnswerClass.COMPLETE,
            uploaded_rows=None if upload is None else len(upload.rows),
        )
        if over:
            raise archive_error(f"there are {limit} rows or more", evidence)
        return Answer(answer.rows, evidence)

    def availability(self) -> tuple[bool, str]:
        """It is always there."""
        return True, "available"
