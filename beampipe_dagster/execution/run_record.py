"""The run record: what an execution did outside, kept beside its manifest.

It lives at ``workflow_manifest.beampipe_run_record``. Unknown sections are kept as they are, a ``terminal``
section is frozen once it is there, texts are bounded. Times are RFC 3339 with milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.discovery.staging.redaction import hidden

KEY: Final = "beampipe_run_record"
TEXT_LIMIT: Final = 512
"""Bytes of a raw state or an error that the record keeps."""

_EXCEPTION: Final = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Failure|Warning)\b")
"""How a traceback's last line begins; a long log may have lost its middle, so its place says nothing."""

LOG_LIMIT: Final = 2048
"""Bytes of a failed drop's log that the record keeps."""


def of(manifest: object) -> dict[str, Any]:
    """The record in a manifest, an empty one when there is none."""
    return section(manifest, KEY) if isinstance(manifest, Mapping) else {}


def put(manifest: object, record: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with this record in it; all its other keys stay, and what is no manifest is replaced."""
    return {**(manifest if isinstance(manifest, Mapping) else {}), KEY: dict(record)}


def bounded(text: str | None, limit: int = TEXT_LIMIT) -> str | None:
    """Trimmed text of at most ``limit`` bytes; longer text ends in ``...``; blank text is no text.

    The queries of URLs are hidden: a drop that cannot fetch a staged file shows the URL, which is a secret.
    """
    trimmed = hidden((text or "").strip())
    if not trimmed:
        return None
    raw = trimmed.encode()
    return trimmed if len(raw) <= limit else raw[:limit].decode(errors="ignore") + "..."


def headline(log: str) -> str:
    """What a log says in one line: a traceback's last word, else its first error, else its first line."""
    lines = [line for line in hidden(log).splitlines() if line.strip()]
    if not lines:
        return ""
    if any(line.startswith("Traceback (most recent") for line in lines):
        raised = [line for line in lines if _EXCEPTION.match(line)]
        if raised:
            return raised[-1].strip()
    error = next((line for line in lines if line.startswith("ERROR")), lines[0])
    return error.removeprefix("ERROR:").strip()


def with_requested(record: Mapping[str, Any], sources: Sequence[object]) -> dict[str, Any]:
    """What the execution is about: its sources, each with the scheduling blocks that were asked for, if any were."""
    kept: list[dict[str, Any]] = []
    for source in sources:
        name = source.get("source_identifier") if isinstance(source, Mapping) else None
        if not isinstance(source, Mapping) or not isinstance(name, str):
            continue
        sbids = [str(sbid) for sbid in source.get("sbids") or []]
        plain = {str(key): value for key, value in source.items() if key != "sbids"}
        kept.append({**plain, **({"sbids": sbids} if sbids else {})})
    return {
        **record,
        "requested_sources": {
            "count": len(kept),
            "source_identifiers": [source["source_identifier"] for source in kept],
            "sources": kept,
        },
    }


def with_deploy(
    record: Mapping[str, Any],
    *,
    session_id: str,
    manager_url: str,
    verify_ssl: bool,
    at: datetime,
    urls: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The session was deployed.

    Parameters
    ----------
    urls
        Where an operator can look at it; by default the manager's pages about it.
    """
    base = manager_url.strip().rstrip("/")
    if urls is None:
        session = f"{base}/api/sessions/{session_id}"
        urls = {
            "dim_session_status_url": f"{session}/status",
            "dim_graph_status_url": f"{session}/graph/status",
        }
    deploy: dict[str, Any] = {
        "deployed_at": rfc3339(at),
        "dim_rest_base": base,
        "verify_ssl": verify_ssl,
        "operator_urls": {name: url.strip() for name, url in urls.items() if url.strip()},
    }
    return {
        **record,
        "dim": {**section(record, "dim"), "session_id": session_id, "deploy": deploy},
    }


def with_observation(
    record: Mapping[str, Any],
    *,
    session_state: str,
    at: datetime,
    drops: Mapping[str, int] | None,
    round_number: int,
) -> dict[str, Any]:
    """The session was seen in this state."""
    last: dict[str, Any] = {"session_state": session_state, "observed_at": rfc3339(at)}
    if drops is not None:
        last["drops"] = dict(drops)
    poll = section(record, "dim_poll")
    return {
        **record,
        "dim": {**section(record, "dim"), "last_observation": last},
        "dim_poll": {"started_at": rfc3339(at), **poll, "round": round_number},
    }


def with_escalation(record: Mapping[str, Any], *, round_number: int, reason: str) -> dict[str, Any]:
    """An operator was told of a session that goes on; the first time stays."""
    poll = section(record, "dim_poll")
    told = {"round": round_number, "reason": bounded(reason), "terminalized": False}
    return {**record, "dim_poll": {"operator_escalation": told, **poll}}


def with_terminal(
    record: Mapping[str, Any],
    *,
    session_id: str | None,
    session_state: str,
    at: datetime,
    ledger_status: str,
    error: str | None = None,
    failed_drops: list[dict[str, Any]] | None = None,
    error_drops_count: int = 0,
) -> dict[str, Any]:
    """The session ended. The first ending of a session stays; only a missing status is added later."""
    dim = section(record, "dim")
    known = section(dim, "terminal")
    if known and known.get("session_id") == session_id:
        return {**record, "dim": {**dim, "terminal": {"ledger_status": ledger_status, **known}}}
    terminal: dict[str, Any] = {
        "session_state": session_state,
        "observed_at": rfc3339(at),
        "session_id": session_id,
        "ledger_status": ledger_status,
    }
    if (text := bounded(error)) is not None:
        terminal["error"] = text
    if error_drops_count:
        terminal["error_drops_count"] = error_drops_count
    if failed_drops:
        terminal["failed_drops"] = [
            {**drop, "log": bounded(drop.get("log"), LOG_LIMIT)} for drop in failed_drops
        ]
    return {**record, "dim": {**dim, "terminal": terminal}}


def section(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of the record; anything that is no object is as good as absent."""
    found = record.get(name)
    return dict(found) if isinstance(found, dict) else {}


def with_verification(
    record: Mapping[str, Any],
    *,
    artifact_id: str,
    inventory_sha256: str,
    report_sha256: str,
    destination_uri: str | None,
    at: datetime,
) -> dict[str, Any]:
    """The outputs were verified; the first verification by an artifact stays."""
    if section(record, "output_verification").get("artifact_id") == artifact_id:
        return dict(record)
    verified: dict[str, Any] = {
        "state": "verified",
        "verified_at": rfc3339(at),
        "artifact_id": artifact_id,
        "inventory_sha256": inventory_sha256,
        "report_sha256": report_sha256,
        "destination_uri": destination_uri,
    }
    return {**record, "output_verification": verified}


def observed_at(value: object) -> datetime | None:
    """The time of an observation, which is a text or an object that holds one; None when it is neither."""
    text = value.get("observed_at") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
