"""One query of a survey asked for many sources: in few requests where that is exact, else source by source.

An answer for many is believed when each of its rows belongs to somebody and when one source, asked alone, gets the
same rows (the canary). A request that fails is halved down to single sources, so that what is wrong with one does
not keep the others from their answers; a single source whose rows are too many is asked about by a job.

Where the archive takes uploads, and there are more sources than one request can name, a table of them may go with the
query instead (:mod:`beampipe_dagster.discovery.upload_join`): which form is used is what was measured to be cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.config.canonical import JsonValue, canonical_json, sha256_hex
from beampipe_dagster.config.project import Query
from beampipe_dagster.discovery.archive import Answer, AnswerClass, Archive, Upload
from beampipe_dagster.discovery.attribution import Row, attribute
from beampipe_dagster.discovery.complete import complete_answer
from beampipe_dagster.discovery.gate import NOT_ASKED
from beampipe_dagster.discovery.look import failure_of
from beampipe_dagster.discovery.rewrite import BatchPlan, NotBatchable, plan_batch
from beampipe_dagster.discovery.upload_join import (
    UPLOAD_CHUNK,
    Costs,
    Form,
    Trap,
    upload_request,
    upload_trap,
)
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
).union(NOT_ASKED)


_MAY_PASS: Final = _AWAY | {f"archive_{AnswerClass.OVERFLOW.value}"}
"""What happens to an upload as to any query; after any other failure the archive does not take it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for: a filled-in template, and how many sources want the answer."""

    context: Mapping[str, JsonValue]
    sources: int = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """The rows for one filled-in template with the evidence of the answer they came in; or why there are none.

    ``asked_at`` is given where the answer was kept from before.
    """

    rows: list[Row] = field(default_factory=list)
    evidence: dict[str, JsonValue] = field(default_factory=dict)
    error: BeampipeError | None = None
    shared: bool = False
    asked_at: datetime | None = None


class _DisbelievedError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Way:
    """A form of query for many, with the template that it is made of."""

    plan: BatchPlan
    form: Form

    def request(self, contexts: Sequence[Mapping[str, JsonValue]]) -> tuple[str, Upload | None]:
        """The query for some sources, and the table that goes with it."""
        if self.form is not Form.UPLOAD:
            return self.plan.adql(contexts, as_list=self.form is Form.IN), None
        request = upload_request(self.plan, contexts)
        if isinstance(request, Trap):
            raise _DisbelievedError(request.value)
        return request


@dataclass(slots=True)
class _SoFar:
    """How the requests for several sources went, of those that a chunk was halved into."""

    seconds: float = 0.0
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
    costs
        What forms of queries were measured to cost; without it nothing is known.
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
        costs: Costs | None = None,
    ) -> None:
        self._query = query
        self._archive = archive
        self._pool = pool
        self._in_order = in_order
        self._seed = seed
        wanted = query.batch.size if query.batch is not None else None
        self._chunk = chunk if wanted is None else wanted
        self._upload_chunk = UPLOAD_CHUNK if wanted is None else wanted
        self._max_characters = max_characters
        self._costs = costs or Costs(clock=SystemClock())

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
        template, form = self._query.adql_template, self._query.batch.form if self._query.batch else "auto"
        if form == "none":
            return self._singly(asks, {"not_batched": "batch_none"})
        plan = plan_batch(template, frozenset(next(iter(asks.values())).context))
        if isinstance(plan, NotBatchable):
            return self._singly(asks, {"not_batched": plan.reason.value})
        ways = self._ways(plan, form, asks)
        reason = "form_not_possible"
        for way in ways:
            try:
                return self._asked(way, asks)
            except _DisbelievedError as disbelieved:
                reason = disbelieved.reason
                if way.form is Form.UPLOAD:
                    self._costs.failed(self._query.adapter, template, way.form)
        return self._singly(asks, {"not_batched": reason})

    def _ways(self, plan: BatchPlan, form: str, asks: Mapping[str, Ask]) -> list[_Way]:
        """The forms to try, one after the other, until one is believed."""
        literal = Form.IN if plan.as_list and form != "or" else Form.OR
        if form == "in" and not plan.as_list:
            return []
        forms = [literal]
        more_than_one = next(self._chunks(_Way(plan, literal), asks), {}).keys() != asks.keys()
        wanted = form == "upload" or (form == "auto" and more_than_one)
        if wanted and upload_trap(plan) is None and self._archive.capabilities().upload:
            forms = [Form.UPLOAD, literal]
            if form == "auto":
                forms = self._costs.cheapest_first(self._query.adapter, plan.template, forms)
                # What is dearer is the way out all the same, when the cheaper one is not believed.
                forms += [one for one in (literal,) if one not in forms]
        return [_Way(plan, one) for one in forms]

    def _asked(self, way: _Way, asks: Mapping[str, Ask]) -> dict[str, Reply]:
        parts = list(self._chunks(way, asks))
        counts = [_SoFar() for _ in parts]
        answers = self._pool.map(lambda part, so_far: self._together(way, part, so_far), parts, counts)
        replies = {text: reply for part in answers for text, reply in part.items()}
        checked = self._checked(replies)
        shared = sum(reply.shared for reply in replies.values())
        if shared:
            self._costs.measured(
                self._query.adapter,
                way.plan.template,
                way.form,
                seconds=sum(one.seconds for one in counts),
                sources=shared,
            )
        return checked

    def _chunks(self, way: _Way, asks: Mapping[str, Ask]) -> Iterator[dict[str, Ask]]:
        """Parts of the asks whose queries are short enough; a single one may be as long as it is."""
        if way.form is Form.UPLOAD:
            limit = self._archive.capabilities().upload_row_limit or self._upload_chunk
            items, size = list(asks.items()), max(1, min(limit, self._upload_chunk))
            yield from (dict(items[at : at + size]) for at in range(0, len(items), size))
            return
        plan = way.plan
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
            answer = complete_answer(self._archive, text)
        except Exception as error:  # noqa: BLE001  # it is this reply's, and the others go on
            return Reply(error=failure_of(error))
        evidence = {**answer.evidence.as_dict(), **self._told, "sources": ask.sources, **more}
        return Reply(answer.rows, evidence)

    @property
    def _told(self) -> dict[str, JsonValue]:
        return {"query": self._query.name}

    def _together(self, way: _Way, asks: Mapping[str, Ask], so_far: _SoFar) -> dict[str, Reply]:
        """Replies from one answer; where that fails, from one for each half."""
        if len(asks) == 1 or so_far.hopeless:
            more: dict[str, JsonValue] = {"not_batched": "batches_fail"} if so_far.hopeless else {}
            return {text: self._single(text, ask, more) for text, ask in asks.items()}
        contexts = [ask.context for ask in asks.values()]
        try:
            answer = self._answer(way, contexts)
            rows = attribute(way.plan, contexts, answer.rows)
        except _DisbelievedError:
            raise
        except Exception as error:  # halving finds out whose it is
            failure = failure_of(error)
            if failure.code in _DISBELIEVED:
                raise _DisbelievedError(failure.code) from error
            if way.form is Form.UPLOAD and failure.code not in _MAY_PASS:
                raise _DisbelievedError("upload_fails") from error
            so_far.failures += 1
            if failure.code in _AWAY and not so_far.probed:
                so_far.probed = True
                return self._probed(way, asks, so_far)
            return self._halved(way, asks, so_far)
        so_far.answers += 1
        so_far.seconds += answer.evidence.seconds
        evidence = {
            **answer.evidence.as_dict(),
            **self._told,
            "form": way.form.value,
            "sources": sum(ask.sources for ask in asks.values()),
        }
        return {text: Reply(own, evidence, shared=True) for text, own in zip(asks, rows, strict=True)}

    def _answer(self, way: _Way, contexts: Sequence[Mapping[str, JsonValue]]) -> Answer:
        adql, upload = way.request(contexts)
        return self._archive.query(adql) if upload is None else self._archive.query(adql, upload=upload)

    def _halved(self, way: _Way, asks: Mapping[str, Ask], so_far: _SoFar) -> dict[str, Reply]:
        items, middle = list(asks.items()), len(asks) // 2
        halves = (dict(items[:middle]), dict(items[middle:]))
        replies = [self._together(way, half, so_far) for half in halves if half]
        return {text: reply for part in replies for text, reply in part.items()}

    def _probed(self, way: _Way, asks: Mapping[str, Ask], so_far: _SoFar) -> dict[str, Reply]:
        """Halve only if the archive is there: else a hundred requests would find out what two can tell."""
        texts = list(asks)
        known = {text: self._single(text, asks[text], {}) for text in (texts[0], texts[-1])}
        errors = [reply.error for reply in known.values() if reply.error is not None]
        rest = {text: ask for text, ask in asks.items() if text not in known}
        if len(errors) == len(known) and all(error.code in _AWAY for error in errors):
            found = dict.fromkeys(rest, Reply(error=errors[0]))
        else:
            found = self._halved(way, rest, so_far)
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
