"""An execution comes into being: its row, the locks on its sources, the cleared flags, and the story of it.

All of it happens in the caller's transaction, whoever asks: a tick, an operator, or a retry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.config.project import ExecutionAutomation, ProjectConfig
from beampipe_dagster.execution.options import AS_USUAL, LaunchOptions
from beampipe_dagster.execution.retry_policy import RetryPolicy
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, provenance, sources
from beampipe_dagster.ledger.execution_values import Execution, NewExecution
from beampipe_dagster.ledger.pending import FORGIVEN
from beampipe_dagster.ledger.profiles import StoredProfile
from beampipe_dagster.ledger.projects import ProjectRevision
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.signature.payload import combined_signature, partition_key

AUTOMATION: Final = "automation"


@dataclass(frozen=True, slots=True)
class Order:
    """What an execution is to be about.

    Attributes
    ----------
    policy
        The platform's budget of retries; the survey's rules overrule it.
    key, request_sha256
        By what the request of an operator is known again.
    """

    revision: ProjectRevision
    config: ProjectConfig
    profile: StoredProfile
    actor: str
    policy: RetryPolicy
    options: LaunchOptions = AS_USUAL
    key: str | None = None
    request_sha256: str | None = None

    @property
    def rules(self) -> ExecutionAutomation:
        """The survey's rules; the defaults where it has none."""
        return self.config.automation.execution or ExecutionAutomation()


def key_of(signatures: dict[str, str]) -> str:
    """The partition key of an execution over these signatures, by source."""
    if len(signatures) == 1:
        ((name, signature),) = signatures.items()
        return partition_key(name, signature)
    return partition_key(f"{len(signatures)}-sources", combined_signature(signatures))


def failed_before(source: Source) -> str | None:
    """The execution of the source's current signature that failed last, and is to be tried again."""
    return source.failed_execution_id if source.failed_now else None


def groups_of(ready: Sequence[Source], size: int) -> list[list[Source]]:
    """Sources in the order of their turn, in groups of one execution each.

    What failed together is tried again together: it has the same signature, and keeps its partition key.
    """
    groups: list[list[Source]] = []
    open_groups: dict[str | None, list[Source]] = {}
    for source in ready:
        of = failed_before(source)
        group = open_groups.get(of)
        if group is None or len(group) >= size:
            group = open_groups[of] = []
            groups.append(group)
        group.append(source)
    return groups


def create(conn: Connection, order: Order, group: Sequence[Source], *, ids: Ids, now: datetime) -> Execution:
    """Create the execution of these sources' current signatures.

    Raises
    ------
    ConflictError
        ``source_already_executing``.
    """
    return create_all(conn, order, [group], ids=ids, now=now)[0]


def create_all(
    conn: Connection, order: Order, groups: Sequence[Sequence[Source]], *, ids: Ids, now: datetime
) -> list[Execution]:
    """Create an execution of each group's current signatures, all with the same few statements.

    Raises
    ------
    ConflictError
        ``source_already_executing``.
    """
    made = executions.create_many(conn, [_new(conn, order, group, ids) for group in groups], now=now)
    cleared: dict[str, object] = {"workflow_run_pending": False, "hold": None, **FORGIVEN}
    sources.update(conn, [source.id for group in groups for source in group], cleared, now=now)
    events = [event for execution in made for event in _story(order, execution)]
    provenance.record(conn, events, ids=ids, now=now)
    return made


def _new(conn: Connection, order: Order, group: Sequence[Source], ids: Ids) -> NewExecution:
    signatures = {source.source_identifier: source.discovery_signature or "" for source in group}
    verification, profile = order.config.output_verification, order.profile
    retry_of, number = _retried(conn, order, group)
    return NewExecution(
        id=ids.new(),
        project_module=order.revision.project_id,
        partition_key=key_of(signatures),
        claim_token=ids.new(),
        sources=[
            {"source_identifier": source, "discovery_signature": value}
            for source, value in signatures.items()
        ],
        signatures=signatures,
        archive_name=order.rules.archive_name,
        discovery_signature=combined_signature(signatures),
        project_config_id=order.revision.id,
        deployment_profile_id=profile.id,
        deployment_profile_revision=profile.revision,
        deployment_profile_snapshot={
            **profile.spec,
            "id": profile.id,
            "revision": profile.revision,
            "spec_sha256": profile.spec_sha256,
        },
        output_verification_required=verification.required,
        output_verification_policy={
            "required": verification.required,
            "inventory_schema": verification.inventory_schema,
        },
        created_by=order.actor,
        options=order.options.as_json(),
        retry_policy=order.policy.with_rules(order.rules.retry).as_json(),
        retry_of=retry_of,
        retry_number=number,
        create_idempotency_key=order.key,
        create_request_sha256=order.request_sha256,
    )


def _retried(conn: Connection, order: Order, group: Sequence[Source]) -> tuple[str | None, int]:
    """Which execution is tried again, and how many retries of the budget are used by now.

    An operator's retry uses none up. Another revision of the survey begins with a budget of its own.
    """
    failed = {failed_before(source) for source in group}
    if None in failed or len(failed) != 1:
        return None, 0
    (identifier,) = failed
    before = executions.get(conn, str(identifier), light=True)
    if before.project_config_id != order.revision.id:
        return before.id, 0
    return before.id, before.retry_number + (1 if order.actor == AUTOMATION else 0)


def _story(order: Order, execution: Execution) -> list[provenance.Event]:
    payload: dict[str, Any] = {
        "partition_key": execution.partition_key,
        "profile": f"{order.profile.name} r{order.profile.revision}",
        "project_version": order.revision.version,
    }
    if execution.retry_of is not None:
        payload |= {"retry_of": execution.retry_of, "retry_number": execution.retry_number}
    if order.options != AS_USUAL:
        payload["options"] = order.options.as_json()
    kinds = ["execution.created"]
    if order.actor == AUTOMATION:
        kinds.append("execution.automated_admitted")
    return [
        provenance.Event(
            event_type=kind,
            project_module=execution.project_module,
            source_identifier=name,
            execution_id=execution.id,
            actor=order.actor,
            correlation_id=execution.claim_token,
            payload=payload,
        )
        for name in execution.source_identifiers
        for kind in kinds
    ]
