"""One query of a survey asked for many sources: in few requests where that is exact, else source by source.

An answer for many is believed when each of its rows belongs to somebody and when one source, asked alone, gets the
same rows (the canary). A request that fails is halved down to single sources, so that what is wrong with one does
not keep the others from their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

from beampipe_dagster.config.canonical import JsonValue, canonical_json, sha256_hex
from beampipe_dagster.config.project import Query
from beampipe_dagster.discovery.archive import AnswerClass, Archive
from beampipe_dagster.discovery.attribution import Row, attribute
from beampipe_dagster.discovery.look import failure_of
from beampipe_dagster.discovery.rewrite import BatchPlan, NotBatchable, plan_batch
from beampipe_dagster.errors import BeampipeError

CHUNK: Final = 50
"""Sources that one request asks for."""
MAX_CHARACTERS: Final = 32_000
"""Longest query for several sources."""
CANARIES: Final = 2
"""How many sources are tried as the canary before the archive counts as away."""

HOPELESS: Final = 7
"""After so many failures of requests for several sources, and no success, a chunk goes on one by one."""

_DISBELIEVED: Final = frozenset({"row_not_attributable", "value_not_comparable"})
_AWAY: Final = frozenset(
    f"archive_{answer.value}"
    for answer in (AnswerClass.TIMEOUT, AnswerClass.REFUSED, AnswerClass.UNAVAILABLE)
)


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for: a filled-in template, and how many sources want the answer."""

    context: Mapping[str, JsonValue]
    sources: int = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """The rows for one filled-in template with the evidence of the answer they came in; or why there are none."""

    rows: list[Row] = field(default_factory=list)
    evidence: dict[str, JsonValue] = field(default_factory=dict)
    error: BeampipeError | None = None
    shared: bool = False


class _DisbelievedError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _SoFar:
    """How the requests for several sources went, of those that a chunk was halved into."""

    answers: int = 0
    failures: int = 0
    probed: bool = False

    @property
    def hopeless(self) -> bool:
        """Whether it is the archive that cannot do it: no single bad source makes so many fail and none succeed."""
        return self.answers == 0 and self.failures >= HOPELESS


class BatchQuery:
    """Asks one query of a survey.

    Parameters
    ----------
    query
        The query.
    archive
        Whom it is put to.
    pool
        In which requests are made side by side.
    in_order
        Whether the order of rows means something; then the canary's must be equal in order too.
    seed
        Decides who is the canary; to be another one each time.
    chunk
        Sources that one request asks for, at most.
    max_characters
        Longest query for several sources.
    """

    def __init__(
        self,
        *,
        query: Query,
        archive: Archive,
        pool: Executor,
        in_order: bool = True,
        seed: str = "",
        chunk: int = CHUNK,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        self._query = query
        self._archive = archive
        self._pool = pool
        self._in_order = in_order
        self._seed = seed
        self._chunk = chunk
        self._max_characters = max_characters

    def ask(self, asks: Mapping[str, Ask]) -> dict[str, Reply]:
        """Ask.

        Parameters
        ----------
        asks
            By the ADQL for one source alone. All contexts have the same names.

        Returns
        -------
        dict
            A reply for each.
        """
        if len(asks) < 2:
            return self._singly(asks, {})
        names = frozenset(next(iter(asks.values())).context)
        plan = plan_batch(self._query.template, names)
        if isinstance(plan, NotBatchable):
            return self._singly(asks, {"not_batched": plan.reason.value})
        try:
            parts = self._pool.map(
                lambda part: self._together(plan, part, _SoFar()), self._chunks(plan, asks)
            )
            replies = {text: reply for part in parts for text, reply in part.items()}
            return self._checked(replies)
        except _DisbelievedError as disbelieved:
            return self._singly(asks, {"not_batched": disbelieved.reason})

    def _chunks(self, plan: BatchPlan, asks: Mapping[str, Ask]) -> Iterator[dict[str, Ask]]:
        """Parts of the asks whose queries are short enough; a single one may be as long as it is."""
        part: dict[str, Ask] = {}
        length = len(plan.template)
        for text, ask in asks.items():
            longer = sum(len(one.text(ask.context)) + len(" AND ") for one in plan.comparisons) + len(
                " OR ()"
            )
            if part and (len(part) >= self._chunk or length + longer > self._max_characters):
                yield part
                part, length = {}, len(plan.template)
            part[text] = ask
            length += longer
        if part:
            yield part

    def _singly(self, asks: Mapping[str, Ask], more: dict[str, JsonValue]) -> dict[str, Reply]:
        replies = self._pool.map(lambda text: self._single(text, asks[text], more), asks)
        return dict(zip(asks, replies, strict=True))

    def _single(self, text: str, ask: Ask, more: Mapping[str, JsonValue]) -> Reply:
        try:
            answer = self._archive.query(text)
        except Exception as error:  # noqa: BLE001  # it is this reply's, and the others go on
            return Reply(error=failure_of(error))
        return Reply(answer.rows, {**answer.evidence.as_dict(), "sources": ask.sources, **more})

    def _together(self, plan: BatchPlan, asks: Mapping[str, Ask], so_far: _SoFar) -> dict[str, Reply]:
        """Replies from one request; where that fails, from one for each half."""
        if len(asks) == 1 or so_far.hopeless:
            more: dict[str, JsonValue] = {"not_batched": "batches_fail"} if so_far.hopeless else {}
            return {text: self._single(text, ask, more) for text, ask in asks.items()}
        contexts = [ask.context for ask in asks.values()]
        try:
            answer = self._archive.query(plan.adql(contexts))
            rows = attribute(plan, contexts, answer.rows)
        except Exception as error:  # halving finds out whose it is
            failure = failure_of(error)
            if failure.code in _DISBELIEVED:
                raise _DisbelievedError(failure.code) from error
            so_far.failures += 1
            if failure.code in _AWAY and not so_far.probed:
                so_far.probed = True
                return self._probed(plan, asks, so_far)
            return self._halved(plan, asks, so_far)
        so_far.answers += 1
        evidence = {**answer.evidence.as_dict(), "sources": sum(ask.sources for ask in asks.values())}
        return {text: Reply(own, evidence, shared=True) for text, own in zip(asks, rows, strict=True)}

    def _halved(self, plan: BatchPlan, asks: Mapping[str, Ask], so_far: _SoFar) -> dict[str, Reply]:
        items, middle = list(asks.items()), len(asks) // 2
        halves = (dict(items[:middle]), dict(items[middle:]))
        replies = [self._together(plan, half, so_far) for half in halves if half]
        return {text: reply for part in replies for text, reply in part.items()}

    def _probed(self, plan: BatchPlan, asks: Mapping[str, Ask], so_far: _SoFar) -> dict[str, Reply]:
        """Halve only if the archive is there: else a hundred requests would find out what two can tell."""
        texts = list(asks)
        known = {text: self._single(text, asks[text], {}) for text in (texts[0], texts[-1])}
        errors = [reply.error for reply in known.values() if reply.error is not None]
        rest = {text: ask for text, ask in asks.items() if text not in known}
        if len(errors) == len(known) and all(error.code in _AWAY for error in errors):
            found = dict.fromkeys(rest, Reply(error=errors[0]))
        else:
            found = self._halved(plan, rest, so_far)
        return {text: known[text] if text in known else found[text] for text in texts}

    def _checked(self, replies: dict[str, Reply]) -> dict[str, Reply]:
        """The replies, if a source that is asked alone gets the same."""
        candidates = [text for text, reply in replies.items() if reply.shared]
        failure: BeampipeError | None = None
        for number in range(min(CANARIES, len(candidates))):
            text = self._canary(candidates, replies, number)
            candidates.remove(text)
            alone = self._single(text, Ask({}), {})
            if alone.error is None:
                if not self._same(alone.rows, replies[text].rows):
                    raise _DisbelievedError("canary_mismatch")
                return replies
            if alone.error.code not in _AWAY:  # alone it fails, with others it does not: that is a difference
                raise _DisbelievedError("canary_mismatch")
            failure = failure or alone.error
        if failure is None:  # nobody shared an answer
            return replies
        return {text: Reply(error=failure) if reply.shared else reply for text, reply in replies.items()}

    def _canary(self, candidates: Sequence[str], replies: Mapping[str, Reply], number: int) -> str:
        """By chance one with rows or one without: rows that should not be there and such that are missing."""
        chance = int(sha256_hex(f"{self._seed}:{self._query.name}:{number}")[:12], 16)
        wanted: Callable[[str], bool] = lambda text: bool(replies[text].rows) is bool(chance % 2)  # noqa: E731  # short
        among = sorted(text for text in candidates if wanted(text)) or sorted(candidates)
        return among[(chance // 2) % len(among)]

    def _same(self, alone: list[Row], shared: list[Row]) -> bool:
        if self._in_order or alone == shared:
            return alone == shared
        return sorted(map(canonical_json, alone)) == sorted(map(canonical_json, shared))
