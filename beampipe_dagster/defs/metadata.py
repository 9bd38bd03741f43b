"""From the services' facts to what the Dagster UI shows: tables, links, JSON, short texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import dagster as dg

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.execution.run_record import headline
from beampipe_dagster.ledger.gates import ArchiveRow
from beampipe_dagster.observe.sky import as_image, sky_svg
from beampipe_dagster.observe.survey_overview import Overview

Metadata = dict[str, dg.MetadataValue[Any]]

ROWS_SHOWN: Final = 50

DATASET_COLUMNS: Final = dg.TableSchema(
    columns=[
        dg.TableColumn("sbid", "string", description="Scheduling block of the observation"),
        dg.TableColumn("dataset_id", "string", description="The archive's file name"),
        dg.TableColumn("quality", "string", description="Quality level that the archive states"),
        dg.TableColumn("scan_id", "string", description="Scan within the scheduling block"),
    ]
)
"""Columns of the datasets table of a signature."""


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> dg.MetadataValue[Any]:
    """A table of texts with these columns, in the given order."""
    return dg.MetadataValue.table(
        records=[
            dg.TableRecord({name: _text(row.get(name)) for name in columns}) for row in rows[:ROWS_SHOWN]
        ],
        schema=dg.TableSchema(columns=[dg.TableColumn(name, "string") for name in columns]),
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def text(value: object) -> dg.MetadataValue[Any]:
    """Short text."""
    return dg.MetadataValue.text(_text(value))


def of_signature(facts: Mapping[str, Any]) -> Metadata:
    """A discovered signature: what it signs, what changed, what it rests on."""
    diff = facts.get("diff") or {}
    shown: Metadata = {
        "source": text(facts["source_identifier"]),
        "signature": text(facts["signature"]),
        "previous_signature": text(facts.get("previous_signature") or "none"),
        "scheduling_blocks": text(", ".join(facts.get("sbids") or [])),
        "dataset_count": dg.MetadataValue.int(int(facts["dataset_count"])),
        "datasets": table(facts.get("datasets") or [], ["sbid", "dataset_id", "quality", "scan_id"]),
        "discovery_flags": dg.MetadataValue.json(dict(facts.get("flags") or {})),
        **_of_diff(diff),
        "evidence": table(
            facts.get("evidence") or [],
            ["adapter", "rows", "seconds", "answer", "attempts", "started_at", "url"],
        ),
        "discovered_at": text(facts.get("discovered_at")),
    }
    return shown


def _of_diff(diff: Mapping[str, Any]) -> Metadata:
    """What two signatures differ in: numbers, which Dagster draws over time, and a row for each difference."""
    counts = diff.get("counts") or {}
    shown: Metadata = {
        f"datasets_{name}": dg.MetadataValue.int(int(counts.get(name, 0)))
        for name in ("added", "removed", "changed")
    }
    rows: list[dict[str, Any]] = [
        {**ref, "change": kind} for kind in ("added", "removed") for ref in diff.get(kind) or []
    ]
    for kind in ("changed", "flags"):
        rows += [
            {"change": kind, **entry, "field": name, "before": values["old"], "after": values["new"]}
            for entry in diff.get(kind) or []
            for name, values in entry["fields"].items()
        ]
    if rows:
        shown["differences"] = table(rows, ["change", "sbid", "dataset", "field", "before", "after"])
    if diff.get("truncated") or len(rows) > ROWS_SHOWN:
        shown["differences_note"] = text("more differs than is listed; the numbers count all of it")
    return shown


def of_overview(overview: Overview, archives: Sequence[ArchiveRow]) -> Metadata:
    """A survey at one moment: a picture of the sky, tables, and numbers that Dagster draws over time."""
    picture = sky_svg(overview.words, overview.places, overview.cells)
    counted = {name: dg.MetadataValue.int(value) for name, value in overview.numbers.items()}
    words: list[dict[str, object]] = [
        {"state": word.replace("_", " "), "sources": number, "share": f"{number / overview.total:.1%}"}
        for word, number in overview.words.items()
    ]
    looks: list[dict[str, object]] = [
        {"look": "oldest last look", "value": _moment(overview.oldest_look)},
        {"look": "newest look", "value": _moment(overview.newest_look)},
        {"look": "stale sources", "value": overview.stale},
        {"look": "never looked at", "value": overview.never_looked},
        {"look": "sources without coordinates", "value": overview.without_place},
    ]
    return {
        "sky": dg.MetadataValue.md(as_image(picture, f"The sources of {overview.project_id} in the sky")),
        "states": table(words, ["state", "sources", "share"]),
        "freshness": table(looks, ["look", "value"]),
        "archives": table(
            [_of_archive(row) for row in archives], ["archive", "answers", "circuit", "latency"]
        ),
        **counted,
    }


def _of_archive(row: ArchiveRow) -> dict[str, str]:
    answers = {None: "not asked yet", True: "yes", False: "no"}[row.answers]
    latency = "" if row.latency_seconds is None else f"{row.latency_seconds:.2f} s"
    return {
        "archive": row.name,
        "answers": answers,
        "circuit": row.circuit.state.value.replace("_", " "),
        "latency": latency,
    }


def _moment(at: datetime | None) -> str:
    return "none yet" if at is None else rfc3339(at.replace(microsecond=0))


def of_registry(facts: Mapping[str, Any]) -> Metadata:
    """Counts over a survey's sources."""
    shown: Metadata = {
        name: dg.MetadataValue.int(value)
        for name, value in facts.items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
    if facts.get("batch"):
        shown["batch"] = dg.MetadataValue.json(dict(facts["batch"]))
    return shown


def of_outcome(facts: Mapping[str, Any]) -> Metadata:
    """How an execution ended, and where to look further."""
    drops = facts.get("drops") or {}
    dim = (facts.get("run_record") or {}).get("dim") or {}
    terminal = dim.get("terminal") or {}
    shown: Metadata = {
        "status": text(facts["status"]),
        "outcome": text(facts.get("outcome")),
    }
    if facts.get("error"):
        shown["error"] = dg.MetadataValue.md(f"**{facts.get('error_code')}**\n\n{facts['error']}")
    if terminal.get("failed_drops"):
        said = [{**drop, "said": headline(drop.get("log") or "")} for drop in terminal["failed_drops"]]
        shown["failed_drops"] = table(said, ["name", "said", "log"])
    if facts.get("seconds") is not None:
        shown["seconds"] = dg.MetadataValue.float(float(facts["seconds"]))
    shown |= {
        "execution": text(facts["execution_id"]),
        "sources": text(", ".join(facts.get("sources") or [])),
        "signature": text(facts.get("signature")),
        "session": text(facts.get("session_id")),
        "datasets": dg.MetadataValue.int(int(facts.get("datasets") or 0)),
        "drops": dg.MetadataValue.json(dict(drops)),
        "phases": table(
            [{"phase": name, "at": at} for name, at in sorted((facts.get("phases") or {}).items(), key=_at)],
            ["phase", "at"],
        ),
        "run_record": dg.MetadataValue.json(dict(facts.get("run_record") or {})),
    }
    link = session_url(facts.get("manager_url"), facts.get("session_id"))
    if link:
        shown["daliuge_session"] = dg.MetadataValue.url(link)
    return shown


def _at(item: tuple[str, str]) -> str:
    return item[1]


def session_url(manager_url: str | None, session_id: str | None) -> str | None:
    """The island manager's own page about a session."""
    if not manager_url or not session_id:
        return None
    return f"{manager_url}/session?sessionId={session_id}"


def of_step(facts: Mapping[str, Any]) -> Metadata:
    """A step's facts: numbers as numbers, documents as JSON, the rest as text."""
    shown: Metadata = {}
    for name, value in facts.items():
        if isinstance(value, bool) or value is None:
            shown[name] = text(value)
        elif isinstance(value, int):
            shown[name] = dg.MetadataValue.int(value)
        elif isinstance(value, float):
            shown[name] = dg.MetadataValue.float(value)
        elif isinstance(value, dict | list):
            shown[name] = dg.MetadataValue.json(value)
        else:
            shown[name] = text(value)
    return shown


def of_error(error: Mapping[str, Any]) -> Metadata:
    """An error of ours, for the page of a failed step."""
    shown: Metadata = {
        "code": text(error.get("code")),
        "message": text(error.get("message")),
        "hint": text(error.get("hint")),
        "retry": text(error.get("retry")),
    }
    if error.get("details"):
        shown["details"] = dg.MetadataValue.json(dict(error["details"]))
    return shown
