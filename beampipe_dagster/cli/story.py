"""What happened, in plain words: one sentence for each kind of event in the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from beampipe_dagster.cli.render import DIGITS, SHORT_ID, number
from beampipe_dagster.ledger.provenance import RecordedEvent
from beampipe_dagster.sandbox.terminal import shortened

LENGTH: Final = 300

Payload = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sentence:
    """An event in words, and the style in which they are shown."""

    text: str
    style: str = ""


_GOOD, _BAD, _WAITS, _QUIET = "green", "red", "yellow", "dim"


def tell(event: RecordedEvent) -> Sentence:
    """One event in plain words; an unknown kind with what it carries."""
    known = _WORDS.get(event.event_type)
    if known is None:
        carried = json.dumps(event.payload, sort_keys=True) if event.payload else ""
        return Sentence(shortened(f"{event.event_type} {carried}", LENGTH))
    words, style = known
    return Sentence(shortened(words(event.payload), LENGTH), style)


def without_repeats(events: Sequence[RecordedEvent]) -> list[tuple[RecordedEvent, int]]:
    """Events for people: what is told once for each source of an execution comes once, with their number.

    That an execution was admitted by the automation is left out: its creation says so.
    """
    told: list[tuple[RecordedEvent, int]] = []
    places: dict[tuple[object, ...], int] = {}
    for event in events:
        if event.event_type == "execution.automated_admitted":
            continue
        key = (event.event_type, event.execution_id, event.occurred_at)
        if event.execution_id is not None and key in places:
            first, count = told[places[key]]
            told[places[key]] = (first, count + 1)
            continue
        places[key] = len(told)
        told.append((event, 1))
    return told


def _text(payload: Payload, key: str, default: str = "?") -> str:
    value = payload.get(key)
    return default if value is None or value == "" else str(value)


def _count(payload: Payload, key: str, one: str) -> str:
    value = payload.get(key)
    return number(value, one) if isinstance(value, int) else f"? {one}s"


def _error(payload: Payload) -> str:
    code = payload.get("code")
    return _text(payload, "message", "no reason given") + (f" [{code}]" if code else "")


def _registered(payload: Payload) -> str:
    return "registered" + ("" if payload.get("enabled", True) else ", disabled")


def _updated(payload: Payload) -> str:
    return "registered again, " + ("enabled" if payload.get("enabled", True) else "disabled")


def _changed(payload: Payload) -> str:
    found = f"{_count(payload, 'datasets', 'dataset')} in {_count(payload, 'sbids', 'scheduling block')}"
    return f"discovery found news: {found}, signature {_text(payload, 'signature')[:DIGITS]}"


def _asked(payload: Payload) -> str:
    sources = payload.get("sources")
    many = f" with {number(sources, 'source')}" if isinstance(sources, int) and sources > 1 else ""
    return f"a look was asked for{many}"


def _circuit_opened(payload: Payload) -> str:
    until = f"until {payload['until']}" if payload.get("until") else "until it is closed by hand"
    return f"archive {_text(payload, 'adapter')} is left alone {until}: {_text(payload, 'reason', 'no reason given')}"


def _created(payload: Payload) -> str:
    return f"admitted as {_text(payload, 'partition_key')} with profile {_text(payload, 'profile')}"


def _translated(payload: Payload) -> str:
    return f"graph translated and placed: {_count(payload, 'drops', 'drop')}"


def _started(payload: Payload) -> str:
    attempt = payload.get("attempt")
    again = f" (attempt {attempt})" if isinstance(attempt, int) and attempt > 1 else ""
    # The session's name is long, and in `beampipe execution show`.
    return f"submitting a session{again} to {_text(payload, 'manager_url')}"


def _submitted(payload: Payload) -> str:
    if payload.get("adopted"):
        return "submission proven: its session was found running"
    return f"submitted: the session runs with {_count(payload, 'drops', 'drop')}"


def _disproved(payload: Payload) -> str:
    return f"submission disproved: its session is {_text(payload, 'presence')}; it is submitted afresh"


def _mismatch(payload: Payload) -> str:
    person = "; an operator must look" if payload.get("requires_operator") else ""
    return f"two layers contradict each other: {_text(payload, 'code').replace('_', ' ')}{person}"


def _verified(payload: Payload) -> str:
    by = _text(payload, "publisher")
    receipt = _text(payload, "receipt_id")
    return f"products verified by {by}: {_count(payload, 'products', 'product')}, receipt {receipt}"


def _escalated(payload: Payload) -> str:
    return (
        f"an operator should look: {_text(payload, 'message', _text(payload, 'reason', 'no reason given'))}"
    )


def _failed(payload: Payload) -> str:
    return f"failed: {_text(payload, 'error', 'no reason given')}"


def _ended(word: str) -> Callable[[Payload], str]:
    def words(payload: Payload) -> str:
        error = payload.get("error")
        return f"{word}: {error}" if error else word

    return words


def _vanishing(payload: Payload) -> str:
    return (
        f"{_count(payload, 'missing', 'dataset')} missing in a complete answer; believed if a second one says so "
        f"after {_text(payload, 'believed_after')}"
    )


def _swept(payload: Payload) -> str:
    new = "everything" if payload.get("everything") else _count(payload, "new_rows", "new row")
    return f"query {_text(payload, 'query')} swept: {new}, {_count(payload, 'sources', 'source')} asked for"


def _staging(words: str) -> Callable[[Payload], str]:
    """A sentence about a staging job, with what went wrong where something did."""

    def told(payload: Payload) -> str:
        error = f": {payload['error']}" if payload.get("error") else ""
        return f"staging of {_text(payload, 'group')}: {words.format(phase=_text(payload, 'phase'))}{error}"

    return told


def _prioritized(payload: Payload) -> str:
    return f"priority {_text(payload, 'before')} → {_text(payload, 'priority')}"


def _staleness_set(payload: Payload) -> str:
    hours = payload.get("hours")
    return "looks are stale after " + ("as long as the survey says" if hours is None else f"{hours} h")


def _activated(payload: Payload) -> str:
    return f"survey at revision {_text(payload, 'version')} ({_text(payload, 'spec_sha256')[:DIGITS]})"


_WORDS: Final[dict[str, tuple[Callable[[Payload], str], str]]] = {
    "config.activated": (_activated, ""),
    "source.registered": (_registered, ""),
    "source.updated": (_updated, ""),
    "source.enabled": (lambda _: "enabled", ""),
    "source.disabled": (lambda _: "disabled", _WAITS),
    "source.staleness_set": (_staleness_set, ""),
    "source.deleted": (lambda _: "deleted from the registry", _WAITS),
    "discovery.requested": (_asked, ""),
    "discovery.changed": (_changed, "cyan"),
    "discovery.unchanged": (lambda _: "discovery found nothing new", _QUIET),
    "discovery.no_datasets": (lambda _: "discovery found no dataset", _QUIET),
    "discovery.error": (lambda payload: f"discovery had no complete answer: {_error(payload)}", _WAITS),
    "discovery.timeout": (lambda payload: f"discovery had no answer in time: {_error(payload)}", _WAITS),
    "discovery.quarantined": (
        lambda payload: f"quarantined after {_text(payload, 'failures')} failed looks: {_error(payload)}",
        _BAD,
    ),
    "discovery.vanishing": (_vanishing, _WAITS),
    "discovery.released": (lambda payload: f"looked at again: {_text(payload, 'why')}", ""),
    "discovery.swept": (_swept, _QUIET),
    "source.prioritized": (_prioritized, ""),
    "archive.circuit_opened": (_circuit_opened, _BAD),
    "archive.circuit_closed": (
        lambda payload: f"archive {_text(payload, 'adapter')} is asked again ({_text(payload, 'how')})",
        _GOOD,
    ),
    "execution.held": (lambda payload: f"held: {_error(payload)}", _WAITS),
    "execution.created": (_created, ""),
    "execution.automated_admitted": (lambda _: "admitted by the automation", _QUIET),
    "execution.released": (lambda payload: f"its failure is forgiven: {_text(payload, 'why')}", ""),
    "execution.staging_job_created": (_staging("a job was created"), ""),
    "execution.staging_phase": (_staging("the job is {phase}"), _QUIET),
    "execution.staging_job_completed": (_staging("all files are there"), "cyan"),
    "execution.staging_job_failed": (_staging("the job failed"), _WAITS),
    "execution.staging_uncertain": (_staging("whether the job was created is being looked for"), _WAITS),
    "execution.staging_job_abandoned": (_staging("the job was not found and another one is made"), _WAITS),
    "execution.staging_expired": (_staging("the files are gone again and are staged anew"), _WAITS),
    "execution.manifest_generated": (lambda payload: f"manifest built ({_sha(payload)})", ""),
    "execution.graph_patched": (lambda payload: f"graph prepared ({_sha(payload)})", ""),
    "execution.translated": (_translated, ""),
    "execution.waiting": (lambda payload: f"waits: {_error(payload)}", _WAITS),
    "execution.execute_started": (_started, ""),
    "execution.submission_recorded": (_submitted, "cyan"),
    "execution.submission_uncertain": (
        lambda payload: f"submission uncertain, its session is being looked for: {_error(payload)}",
        _WAITS,
    ),
    "execution.submission_disproved": (_disproved, _WAITS),
    "execution.reconciliation_mismatch": (_mismatch, _WAITS),
    "execution.poll_budget_escalation": (_escalated, _WAITS),
    "execution.no_progress_escalation": (_escalated, _WAITS),
    "execution.submission_unresolved": (_escalated, _BAD),
    "execution.cancel_requested": (
        lambda payload: f"cancellation asked for: {_text(payload, 'reason')}",
        _WAITS,
    ),
    "execution.cancel_unconfirmed": (
        lambda payload: f"told to stop, not confirmed yet: {_text(payload, 'reason')}",
        _WAITS,
    ),
    "execution.retry_requested": (lambda payload: f"retry asked for: {_text(payload, 'reason')}", _WAITS),
    "execution.submission_detected_after_abandonment": (
        lambda payload: f"its session {_text(payload, 'session_id')} turned up after it had been given up",
        _BAD,
    ),
    "source.held": (lambda payload: f"held by an operator: {_text(payload, 'reason')}", _WAITS),
    "source.released": (lambda payload: f"no longer held: {_text(payload, 'reason')}", ""),
    "execution.launch_held": (lambda payload: f"held by an operator: {_text(payload, 'reason')}", _WAITS),
    "execution.launch_released": (lambda payload: f"no longer held: {_text(payload, 'reason')}", ""),
    "project.held": (lambda payload: f"survey held: {_text(payload, 'reason')}", _WAITS),
    "project.released": (lambda payload: f"survey no longer held: {_text(payload, 'reason')}", ""),
    "profile.paused": (lambda payload: f"profile paused: {_text(payload, 'reason')}", _WAITS),
    "profile.resumed": (lambda payload: f"profile resumed: {_text(payload, 'reason')}", ""),
    "execution.session_left_behind": (
        lambda payload: f"its session could not be deleted: {_error(payload)}",
        _QUIET,
    ),
    "execution.outputs_verified": (_verified, _GOOD),
    "execution.outputs_failed": (
        lambda payload: f"products refused: {_text(payload, 'reason', 'no reason given')}",
        _BAD,
    ),
    "execution.completed": (_ended("completed"), _GOOD),
    "execution.failed": (_failed, _BAD),
    "execution.cancelled": (_ended("cancelled"), _QUIET),
    "execution.not_submitted": (_ended("not submitted"), _WAITS),
}


def _sha(payload: Payload) -> str:
    return _text(payload, "sha256")[:DIGITS]


def about(event: RecordedEvent, *, subject: str) -> str:
    """What an event is about, where the page is about something larger than that.

    Parameters
    ----------
    subject
        ``source``, ``execution`` or ``project``: what the whole timeline is about.
    """
    name = event.source_identifier or ""
    short = (event.execution_id or "")[:SHORT_ID]
    if subject == "project":
        return name or short
    return short if subject == "source" else name
