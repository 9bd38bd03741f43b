"""One look at one source: its queries, its enrichments, and what the answers come to. No ledger here."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig, Query
from beampipe_dagster.discovery.archives import ArchiveProvider
from beampipe_dagster.discovery.complete import complete_answer
from beampipe_dagster.discovery.declarative import kept
from beampipe_dagster.discovery.plugins import Plugin, Plugins, prepared_by, rules_of
from beampipe_dagster.discovery.prepare import Rules, choose_enrichment_row, prepare_metadata, sbids_of
from beampipe_dagster.discovery.templates import render, template_context
from beampipe_dagster.errors import BeampipeError, ConfigError
from beampipe_dagster.signature.payload import (
    NO_DATASETS_PAYLOAD,
    Signature,
    group_by_sbid,
    sign,
    signature_of_payload,
    validate_records,
)


@dataclass(frozen=True, slots=True)
class Look:
    """What the archives said about a source, complete; or the error that kept it from being complete.

    ``metadata`` holds every field by SBID; ``signature`` signs the projection that the survey asked for.
    """

    source_identifier: str
    began_at: datetime
    signature: Signature | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    datasets: int = 0
    flags: dict[str, JsonValue] = field(default_factory=dict)
    evidence: list[JsonValue] = field(default_factory=list)
    error: BeampipeError | None = None


class SourceLook:
    """Looks at sources by the rules of one survey.

    Every query and enrichment must be answered completely. An archive that is away makes the look an error and
    never an empty result: absence is only what a complete answer says.
    """

    def __init__(
        self,
        *,
        config: ProjectConfig,
        archives: ArchiveProvider,
        clock: Clock,
        plugins: Plugins | None = None,
    ) -> None:
        self._config = config
        self._archives = archives
        self._clock = clock
        self._installed = plugins

    @cached_property
    def _plugins(self) -> tuple[Plugin, ...]:
        """The survey's plug-ins; one that is not there makes each look an error, and not the batch."""
        return (self._installed or Plugins()).of(self._config)

    @cached_property
    def rules(self) -> Rules:
        """What is done with the answers to queries of particular names."""
        return rules_of(self._plugins)

    def look(self, source_identifier: str) -> Look:
        """Ask the archives about one source; errors are part of the result."""
        began_at = self._clock.now()
        evidence: list[JsonValue] = []
        try:
            return self._complete(source_identifier, began_at, evidence)
        except Exception as error:  # noqa: BLE001  # whatever one source's rows do, the batch goes on
            return Look(source_identifier, began_at, evidence=evidence, error=failure_of(error))

    def _complete(self, source: str, began_at: datetime, evidence: list[JsonValue]) -> Look:
        queries = queries_of(self._config)
        rows = self._ask(queries[0], source, 0, {}, evidence)
        if not rows:
            return no_datasets(source, began_at, evidence)
        enrichments: dict[str, JsonValue] = {
            query.name: list(self._ask(query, source, index, {}, evidence))
            for index, query in enumerate(queries[1:], start=1)
        }
        sbids = sbids_of(self._config, rows)
        for query in self._config.discovery.enrichments:
            enrichments[query.name] = self._by_sbid(query, source, sbids, evidence)
        return self.signed(source, began_at, rows, enrichments, evidence)

    def _by_sbid(
        self, query: Query, source: str, sbids: list[str], evidence: list[JsonValue]
    ) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {}
        for sbid in sbids:
            rows = self._ask(query, source, len(self._config.discovery.queries), {"sbid": sbid}, evidence)
            row = choose_enrichment_row(query.name, sbid, rows, rules=self.rules)
            if row is not None:
                found[sbid] = row
        return found

    def _ask(
        self,
        query: Query,
        source: str,
        index: int,
        extra: dict[str, JsonValue],
        evidence: list[JsonValue],
    ) -> list[dict[str, JsonValue]]:
        context = {**template_context(self._config, source, index), **extra}
        archive = self._archives.get(self._config, query.adapter)
        answer = complete_answer(archive, render(query.adql_template, context))
        evidence.append({**answer.evidence.as_dict(), "query": query.name})
        return kept(query, context, answer.rows)

    def signed(
        self,
        source: str,
        began_at: datetime,
        rows: list[dict[str, JsonValue]],
        enrichments: dict[str, JsonValue],
        evidence: list[JsonValue],
    ) -> Look:
        """The look that complete answers come to.

        Parameters
        ----------
        source
            The source as it is registered.
        began_at
            Before the first of its queries.
        rows
            Rows of the primary query, at least one.
        enrichments
            By name: the rows of a further query, or ``{sbid: row}`` of an enrichment.
        evidence
            Of the answers.

        Raises
        ------
        BeampipeError
            The rows cannot be made into metadata.
        """
        prepared = prepare_metadata(self._config, source, rows, enrichments, rules=self.rules)
        prepared = prepared_by(self._plugins, self._config, source, rows, enrichments, prepared)
        records: list[JsonValue] = list(prepared.records)
        validate_records(records)
        options = self._config.signature_options
        signature = sign(
            records,
            prepared.flags,
            exclude_fields=options.exclude_fields,
            include_flags=options.include_discovery_flags,
        )
        return Look(
            source,
            began_at,
            signature,
            group_by_sbid(records, prepared.flags),
            datasets=len(records),
            flags=dict(prepared.flags),
            evidence=evidence,
        )


def queries_of(config: ProjectConfig) -> tuple[Query, ...]:
    """The queries of a survey, the primary one first.

    Raises
    ------
    ConfigError
        ``no_discovery_query``.
    """
    queries = tuple(config.discovery.queries)
    if not queries:
        raise ConfigError(
            f"project {config.metadata.id!r} has no discovery query",
            code="no_discovery_query",
            hint="give discovery.queries, the first one being the primary query",
        )
    return queries


def no_datasets(source: str, began_at: datetime, evidence: list[JsonValue]) -> Look:
    """The look of a source about which a complete answer to the primary query had no rows."""
    signature = Signature(signature_of_payload(NO_DATASETS_PAYLOAD), dict(NO_DATASETS_PAYLOAD))
    return Look(source, began_at, signature, dict(NO_DATASETS_PAYLOAD), evidence=evidence)


def failure_of(error: Exception) -> BeampipeError:
    """An error as one of the project's; any other is a defect, and its message says so."""
    if isinstance(error, BeampipeError):
        return error
    return BeampipeError(f"{type(error).__name__}: {error}", hint="this is a defect; please report it")
