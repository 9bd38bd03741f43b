"""What keeps a source from being executed, and its readiness at a glance."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.sources.readiness import Blocker, blocker, failed_flags, readiness
from beampipe_dagster_tests.golden.runner import Case, Deviation

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def first_blocker(value: JsonValue) -> JsonValue:
    """``{source, registered, rows, sbids}`` -> ``{blocker}``."""
    case = cast("dict[str, Any]", value)
    given = case["registered"]
    source = given and _source(
        case["source"],
        enabled=given["enabled"],
        checked=given["last_checked_at_present"],
        signature=given["discovery_signature"],
        claim=given["discovery_claim_token"],
    )
    sbids = None if case["sbids"] is None else [str(sbid) for sbid in case["sbids"]]
    rows = _rows(case)
    found = blocker(source, rows, sbids=sbids)
    considered = {sbid: row for sbid, row in rows.items() if not sbids or sbid in sbids}
    return {"blocker": None if found is None else _shown(found, considered)}


def status_view(value: JsonValue) -> JsonValue:
    """``{source, enabled, last_checked, discovery_signature, last_executed, claim, pending, rows}`` -> view."""
    case = cast("dict[str, Any]", value)
    source = _source(
        case["source"],
        enabled=case["enabled"],
        checked=bool(case["last_checked"]),
        signature=case["discovery_signature"],
        claim=case["claim"],
        executed=case["last_executed"],
        pending=case["pending"],
    )
    rows = _rows(case)
    found = readiness(source, rows)
    return {
        "blockers": [_shown(why, rows) for why in found.blockers],
        "discovery_complete": found.discovery_complete,
        "discovery_signature": source.discovery_signature,
        "last_executed_discovery_signature": source.last_executed_discovery_signature,
        "ready_for_execution": found.ready,
        "signature_matches_last_execution": found.signature_executed,
        "workflow_run_pending": source.workflow_run_pending,
    }


def _source(
    name: str,
    *,
    enabled: bool,
    checked: bool,
    signature: str | None,
    claim: str | None,
    executed: str | None = None,
    pending: bool = False,
) -> Source:
    moment = _NOW if checked else None
    return Source(
        id="1",
        project_module="survey",
        source_identifier=name,
        enabled=enabled,
        ra_deg=None,
        dec_deg=None,
        created_at=_NOW,
        updated_at=_NOW,
        stale_after_hours=None,
        last_checked_at=moment,
        last_attempted_at=moment,
        discovery_requested_at=None,
        last_outcome=None,
        last_error=None,
        failure_count=0,
        next_attempt_at=None,
        discovery_signature=signature,
        last_executed_discovery_signature=executed,
        discovery_claim_token=claim,
        discovery_claim_expires_at=None,
        workflow_run_pending=pending,
        workflow_run_pending_at=None,
        hold=None,
    )


def _rows(case: dict[str, Any]) -> dict[str, JsonValue]:
    return {str(row["sbid"]): row["metadata_json"] for row in case["rows"]}


def _shown(why: Blocker, rows: dict[str, JsonValue]) -> JsonValue:
    if why.code != "discovery_flags_failed":
        return {"code": why.code}
    failed: list[JsonValue] = list(failed_flags(rows))
    return {"code": why.code, "failed_keys": failed}


def _only_empty(case: Case) -> bool:
    given = cast("dict[str, Any]", case.input)
    wanted = [str(sbid) for sbid in given.get("sbids") or []]
    documents = [row for sbid, row in _rows(given).items() if not wanted or sbid in wanted]
    return bool(documents) and all(isinstance(d, dict) and d.get("datasets") == [] for d in documents)


def _says_no_datasets(case: Case, got: JsonValue) -> bool:
    answer = cast("dict[str, Any]", got)
    if case.fn == "readiness":
        return bool(answer == {"blocker": {"code": "no_datasets"}})
    return "no_datasets" in [why["code"] for why in answer["blockers"]] and not answer["ready_for_execution"]


FUNCTIONS = {"readiness": first_blocker, "source_status": status_view}
DEVIATIONS = [
    Deviation(
        name="nothing to process",
        reason="a source for which the archive holds no dataset is not executed",
        applies=_only_empty,
        agrees=_says_no_datasets,
    ),
]
