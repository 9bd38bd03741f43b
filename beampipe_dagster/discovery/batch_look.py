"""Looks at many sources at once: each query in few requests for all of them, each scheduling block once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig, Query
from beampipe_dagster.discovery.archives import ArchiveProvider
from beampipe_dagster.discovery.attribution import Row
from beampipe_dagster.discovery.batch_query import CHUNK, Ask, BatchQuery, Reply
from beampipe_dagster.discovery.declarative import kept
from beampipe_dagster.discovery.look import Look, SourceLook, failure_of, no_datasets, queries_of
from beampipe_dagster.discovery.lookups import Lookups, Recent
from beampipe_dagster.discovery.plugins import Plugins
from beampipe_dagster.discovery.prepare import choose_enrichment_row, sbids_of
from beampipe_dagster.discovery.templates import render, template_context
from beampipe_dagster.discovery.upload_join import PROCESS_COSTS, Costs
from beampipe_dagster.errors import BeampipeError

Wanted: TypeAlias = dict[str, Sequence[str | None]]
"""The SBIDs that a query is asked about, by source; ``[None]`` for a query that has none."""

Replies: TypeAlias = dict[tuple[str, str | None], Reply]
"""Replies by source and SBID."""


@dataclass(slots=True)
class _Subject:
    """What is known so far of a source."""

    name: str
    rows: list[Row] = field(default_factory=list)
    enrichments: dict[str, JsonValue] = field(default_factory=dict)
    sbids: list[str] = field(default_factory=list)
    evidence: list[JsonValue] = field(default_factory=list)
    error: BeampipeError | None = None
    began_at: datetime | None = None

    def saw(self, reply: Reply) -> list[Row]:
        """Take over a reply: its rows, copied, since others may share them.

        Raises
        ------
        BeampipeError
            The reply's.
        """
        if reply.error is not None:
            raise reply.error
        if reply.evidence not in self.evidence:
            self.evidence.append(reply.evidence)
        if reply.asked_at is not None:  # the look is as old as the oldest of its answers
            self.began_at = min(reply.asked_at, self.began_at or reply.asked_at)
        return [dict(row) for row in reply.rows]


class BatchLook:
    """Looks at sources by the rules of one survey, many at once.

    The looks are those of :class:`~beampipe_dagster.discovery.look.SourceLook`. Their evidence is that of the
    answers that sources share, with ``sources`` for how many; ``not_batched`` tells why a query was asked source by
    source all the same: a :class:`~beampipe_dagster.discovery.rewrite.Reason`, ``row_not_attributable``,
    ``value_not_comparable``, ``canary_mismatch``, or ``batches_fail``.

    Parameters
    ----------
    config
        The survey.
    archives
        Whom to ask.
    clock
        Time.
    plugins
        Instead of those that are installed.
    concurrency
        Requests at a time.
    chunk
        Sources that one request asks for, at most.
    costs
        What forms of queries were measured to cost; those of this process unless given.
    lookups
        Answers about scheduling blocks of a moment ago, shared with others; unless given, with nobody.
    """

    def __init__(
        self,
        *,
        config: ProjectConfig,
        archives: ArchiveProvider,
        clock: Clock,
        plugins: Plugins | None = None,
        concurrency: int = 5,
        chunk: int = CHUNK,
        costs: Costs = PROCESS_COSTS,
        lookups: Lookups | None = None,
    ) -> None:
        self._config = config
        self._archives = archives
        self._clock = clock
        self._costs = costs
        self._lookups = Lookups(clock=clock) if lookups is None else lookups
        self._one = SourceLook(config=config, archives=archives, clock=clock, plugins=plugins)
        self._concurrency = concurrency
        self._chunk = chunk

    def looks(
        self,
        source_identifiers: Sequence[str],
        *,
        known: Mapping[str, int] | None = None,
        fresh_since: datetime | None = None,
    ) -> Iterator[Look]:
        """Ask the archives about sources; a look for each, once. Errors are part of the results.

        An archive that silently leaves a source out of a batch looks like one that has nothing for it. So a loss
        is never believed from an answer that sources shared: a source with fewer datasets than were known is
        looked at again alone, and that look counts.

        Parameters
        ----------
        source_identifiers
            The sources.
        known
            Datasets that a source had at its last complete look; one that is not in it never had any look.
        fresh_since
            An answer about a scheduling block that was asked for before this is asked for again: when the newest
            of the sources was requested.
        """
        began_at = self._clock.now()
        subjects = [_Subject(name) for name in dict.fromkeys(source_identifiers)]
        with ThreadPoolExecutor(max_workers=self._concurrency) as pool:
            self._ask_all(subjects, began_at, pool, fresh_since)
            found = [self._look(subject, began_at) for subject in subjects]
            lost = {
                look.source_identifier
                for look in found
                if look.error is None and look.datasets < (known or {}).get(look.source_identifier, 1)
            }
            alone = {name: pool.submit(self._one.look, name) for name in lost}
            for look in found:
                name = look.source_identifier
                yield alone[name].result() if name in alone else look

    def _ask_all(
        self, subjects: Sequence[_Subject], began_at: datetime, pool: Executor, fresh_since: datetime | None
    ) -> None:
        try:
            queries = queries_of(self._config)
        except BeampipeError as error:
            for subject in subjects:
                subject.error = error
            return
        asker = _Asker(
            self._config,
            self._archives,
            pool,
            rfc3339(began_at),
            self._chunk,
            self._costs,
            self._lookups.since(fresh_since),
        )
        self._primary(asker, queries[0], subjects)
        going_on = _going_on(subjects)
        once: Wanted = {subject.name: [None] for subject in going_on}
        by_sbid: Wanted = {subject.name: subject.sbids for subject in going_on}
        rounds = [(query, index, once) for index, query in enumerate(queries[1:], start=1)]
        rounds += [(query, len(queries), by_sbid) for query in self._config.discovery.enrichments]
        if not rounds:
            return
        # None of them needs another's answer; how many requests are made at a time is the pool's to say.
        with ThreadPoolExecutor(max_workers=len(rounds)) as side_by_side:
            answers = list(side_by_side.map(lambda one: asker.ask(*one), rounds))
        for (query, index, _), replies in zip(rounds, answers, strict=True):
            apply = self._further if index < len(queries) else self._by_sbid
            apply(query, replies, _going_on(going_on))

    def _primary(self, asker: _Asker, query: Query, subjects: Sequence[_Subject]) -> None:
        replies = asker.ask(query, 0, {subject.name: [None] for subject in subjects})
        for subject in subjects:
            with _failing(subject):
                subject.rows = subject.saw(replies[subject.name, None])
                subject.sbids = sbids_of(self._config, subject.rows)

    def _further(self, query: Query, replies: Replies, subjects: Sequence[_Subject]) -> None:
        for subject in subjects:
            with _failing(subject):
                subject.enrichments[query.name] = list(subject.saw(replies[subject.name, None]))

    def _by_sbid(self, query: Query, replies: Replies, subjects: Sequence[_Subject]) -> None:
        for subject in subjects:
            with _failing(subject):
                found: dict[str, JsonValue] = {}
                for sbid in subject.sbids:
                    rows = subject.saw(replies[subject.name, sbid])
                    row = choose_enrichment_row(query.name, sbid, rows, rules=self._one.rules)
                    if row is not None:
                        found[sbid] = row
                subject.enrichments[query.name] = found

    def _look(self, subject: _Subject, began_at: datetime) -> Look:
        name, evidence = subject.name, subject.evidence
        began_at = min(began_at, subject.began_at or began_at)
        with _failing(subject):
            if subject.error is None and not subject.rows:
                return no_datasets(name, began_at, evidence)
            if subject.error is None:
                return self._one.signed(name, began_at, subject.rows, subject.enrichments, evidence)
        return Look(name, began_at, evidence=evidence, error=subject.error)


class _Asker:
    """Puts one query after the other for many sources; what several want is asked once."""

    def __init__(
        self,
        config: ProjectConfig,
        archives: ArchiveProvider,
        pool: Executor,
        seed: str,
        chunk: int,
        costs: Costs,
        lookups: Recent,
    ) -> None:
        self._config = config
        self._archives = archives
        self._pool = pool
        self._seed = seed
        self._chunk = chunk
        self._costs = costs
        self._lookups = lookups

    def ask(self, query: Query, index: int, wanted: Wanted) -> Replies:
        """Replies for what is wanted; errors are among them."""
        texts: dict[tuple[str, str | None], str] = {}
        replies: Replies = {}
        contexts: dict[str, dict[str, JsonValue]] = {}
        for source, sbids in wanted.items():
            for sbid in sbids:
                try:
                    context = template_context(self._config, source, index)
                    if sbid is not None:
                        context["sbid"] = sbid
                    text = render(query.adql_template, context)
                except Exception as error:  # noqa: BLE001  # it is this source's, and the others go on
                    replies[source, sbid] = Reply(error=failure_of(error))
                    continue
                texts[source, sbid] = text
                contexts.setdefault(text, context)
        many = Counter(texts.values())
        asks = {text: Ask(context, many[text]) for text, context in contexts.items()}
        found = self._found(query, index, asks) if asks else {}
        return replies | {key: found[text] for key, text in texts.items()}

    def _found(self, query: Query, index: int, asks: Mapping[str, Ask]) -> dict[str, Reply]:
        try:
            archive = self._archives.get(self._config, query.adapter)
            batch = BatchQuery(
                query=query,
                archive=archive,
                pool=self._pool,
                in_order=index
                > 0,  # records are sorted before they are signed; of other rows the first counts
                seed=self._seed,
                chunk=self._chunk,
                costs=self._costs,
            )
            per_block = index >= len(self._config.discovery.queries)
            known = self._lookups if per_block else None
            replies = known.through(query.adapter, archive, asks, batch.ask) if known else batch.ask(asks)
        except Exception as error:  # noqa: BLE001  # an archive that is not configured, say: errors are results
            return dict.fromkeys(asks, Reply(error=failure_of(error)))
        return {text: _kept(query, asks[text], reply) for text, reply in replies.items()}


def _kept(query: Query, ask: Ask, reply: Reply) -> Reply:
    """The reply with the rows that the query keeps of it."""
    if reply.error is not None or (query.keep is None and not query.match):
        return reply
    try:
        return replace(reply, rows=kept(query, ask.context, reply.rows))
    except Exception as error:  # noqa: BLE001  # it is this source's, and the others go on
        return Reply(error=failure_of(error))


@contextmanager
def _failing(subject: _Subject) -> Iterator[None]:
    """Whatever is wrong with one source's rows, the batch goes on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # errors are part of the result
        subject.error = failure_of(error)


def _going_on(subjects: Sequence[_Subject]) -> list[_Subject]:
    """Those that have datasets, and no error yet."""
    return [subject for subject in subjects if subject.error is None and subject.rows]
