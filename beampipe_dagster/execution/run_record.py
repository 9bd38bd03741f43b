"""The run record: what an execution did outside, kept beside its manifest.

It lives at ``workflow_manifest.beampipe_run_record``. Unknown sections are kept as they are, a ``terminal``
section is frozen once it is there, texts are bounded. Times are RFC 3339 with milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from beampipe_dagster.clock import rfc3339

KEY: Final = "beampipe_run_record"
TEXT_LIMIT: Final = 512
"""Bytes of a raw state or an error that the record keeps."""

_EXCEPTION: Final = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Failure|Warning)\b")
"""How a traceback's last line begins; a long log may have lost its middle, so its place says nothing."""

LOG_LIMIT: Final = 2048
"""Bytes of a failed drop's log that the record keeps."""


def of(manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record in a manifest, an empty one when there is none."""
    record = (manifest or {}).get(KEY)
    return dict(record) if isinstance(record, dict) else {}


def put(manifest: Mapping[str, Any] | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with this record in it; all its other keys stay."""
    return {**(manifest or {}), KEY: dict(record)}


def bounded(text: str | None, limit: int = TEXT_LIMIT) -> str | None:
    """Trimmed text of at most ``limit`` bytes; longer text ends in ``...``; blank text is no text."""
    trimmed = (text or "").strip()
    if not trimmed:
        return None
    raw = trimmed.encode()
    return trimmed if len(raw) <= limit else raw[:limit].decode(errors="ignore") + "..."


def headline(log: str) -> str:
    """What a log says in one line: a traceback's last word, else its first error, else its first line."""
    lines = [line for line in log.splitlines() if line.strip()]
    if not lines:
        return ""
    if any(line.startswith("Traceback (most recent") for line in lines):
        raised = [line for line in lines if _EXCEPTION.match(line)]
        if raised:
            return raised[-1].strip()
    error = next((line for line in lines if line.startswith("ERROR")), lines[0])
    return error.removeprefix("ERROR:").strip()


def with_requested(record: Mapping[str, Any], sources: list[dict[str, Any]]) -> dict[str, Any]:
    """What the execution is about."""
    return {
        **record,
        "requested_sources": {
            "count": len(sources),
            "source_identifiers": [source["source_identifier"] for source in sources],
            "sources": sources,
        },
    }


def with_deploy(
    record: Mapping[str, Any], *, session_id: str, manager_url: str, verify_ssl: bool, at: datetime
) -> dict[str, Any]:
    """The session was deployed."""
    return {
        **record,
        "dim": {
            **_section(record, "dim"),
            "session_id": session_id,
            "deploy": {
                "deployed_at": rfc3339(at),
                "dim_rest_base": manager_url,
                "verify_ssl": verify_ssl,
                "operator_urls": {
                    "dim_session_status_url": f"{manager_url}/api/sessions/{session_id}/status",
                    "dim_graph_status_url": f"{manager_url}/api/sessions/{session_id}/graph/status",
                },
            },
        },
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
    poll = _section(record, "dim_poll")
    return {
        **record,
        "dim": {**_section(record, "dim"), "last_observation": last},
        "dim_poll": {"started_at": rfc3339(at), **poll, "round": round_number},
    }


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
    dim = _section(record, "dim")
    known = _section(dim, "terminal")
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


def _section(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return dict(found) if isinstance(found, dict) else {}
