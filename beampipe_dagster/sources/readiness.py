"""May this source be executed now, and if not, why: the preconditions of an execution, first failure only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ledger.sources import Source


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why a source may not be executed."""

    code: str
    message: str
    hint: str

    def as_dict(self) -> dict[str, JsonValue]:
        """``code, message, hint``, as the registry's ``hold`` keeps it."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


HINTS: Final = {
    "source_not_registered": "register it: beampipe source register",
    "source_disabled": "enable it: beampipe source enable",
    "discovery_never_ran": "wait for the next discovery, or ask for it: beampipe source discover",
    "discovery_signature_missing": "wait for the next discovery, or ask for it: beampipe source discover",
    "discovery_in_progress": "it goes on by itself when the discovery has ended",
    "no_archive_metadata": "no scheduling block of the requested scope has metadata; check the SBIDs",
    "no_datasets": "the archive holds nothing for it yet; it goes on when something is deposited",
    "discovery_flags_failed": "the archives must answer what the flags ask for; it goes on when they do",
    "datasets_vanishing": "a second look decides; it goes on by itself then",
    "signature_already_executed": "nothing is to be done; new data in the archive make a new signature",
}


def truthy(value: JsonValue) -> bool:
    """Whether a flag passes: null, false, 0, blank text and empty containers do not."""
    if isinstance(value, str):
        return bool(value.strip())
    return bool(value)


def failed_flags(metadata: Mapping[str, JsonValue]) -> list[str]:
    """Names of the discovery flags that do not pass in any scheduling block, sorted."""
    failed: set[str] = set()
    for document in metadata.values():
        flags = document.get("discovery_flags") if isinstance(document, dict) else None
        if isinstance(flags, dict):
            failed.update(name for name, value in flags.items() if not truthy(value))
    return sorted(failed)


def blocker(  # noqa: PLR0911  # one return a rule, in the order of the rules
    source: Source | None,
    metadata: Mapping[str, JsonValue],
    *,
    sbids: Collection[str] | None = None,
) -> Blocker | None:
    """The first precondition that does not hold; ``None`` when the source is ready.

    Parameters
    ----------
    source
        The registry's row, ``None`` when there is none.
    metadata
        The source's stored metadata by SBID.
    sbids
        The scheduling blocks that the execution is about; none or empty means all.
    """
    if source is None:
        return _blocker("source_not_registered", "the source is not registered")
    considered = {sbid: row for sbid, row in metadata.items() if not sbids or sbid in sbids}
    if not source.enabled:
        return _blocker("source_disabled", "the source is disabled")
    if source.last_checked_at is None:
        return _blocker("discovery_never_ran", "the archives were never asked about it")
    if not source.discovery_signature:
        return _blocker("discovery_signature_missing", "it has no discovery signature yet")
    if source.discovery_claim_token is not None:
        return _blocker("discovery_in_progress", "a discovery is looking at it now")
    if not considered:
        return _blocker("no_archive_metadata", "it has no archive metadata")
    if not any(_datasets(document) for document in considered.values()):
        return _blocker("no_datasets", "the archive holds no dataset for it")
    failed = failed_flags(considered)
    if failed:
        return _blocker("discovery_flags_failed", f"readiness flags do not pass: {', '.join(failed)}")
    if source.vanish_first_at is not None:  # its scope is in doubt, for one recheck interval as a rule
        return _blocker("datasets_vanishing", "datasets of it were missing at the last look")
    return None


@dataclass(frozen=True, slots=True)
class Readiness:
    """A source's readiness at a glance.

    Attributes
    ----------
    ready
        Whether an execution of its current signature would be admitted, caps aside.
    discovery_complete
        The archives were asked, answered completely, and nobody is asking them now.
    signature_executed
        An execution of the current signature was completed.
    blockers
        Why it is not ready: the first precondition that does not hold, and whether there is nothing new to do.
    """

    ready: bool
    discovery_complete: bool
    signature_executed: bool
    blockers: tuple[Blocker, ...]


def readiness(source: Source, metadata: Mapping[str, JsonValue]) -> Readiness:
    """What :func:`blocker` says, and whether the current signature was executed before."""
    signature = source.discovery_signature
    executed = bool(signature) and signature == source.last_executed_discovery_signature
    found = [why for why in (blocker(source, metadata),) if why is not None]
    if executed:
        found.append(_blocker("signature_already_executed", "its current signature was executed"))
    return Readiness(
        ready=not found,
        discovery_complete=source.last_checked_at is not None
        and bool(signature)
        and source.discovery_claim_token is None,
        signature_executed=executed,
        blockers=tuple(sorted(found, key=lambda why: why.code)),
    )


def _datasets(document: JsonValue) -> bool:
    """Whether a scheduling block's metadata hold anything to process."""
    return not isinstance(document, dict) or document.get("datasets") != []


def _blocker(code: str, message: str) -> Blocker:
    return Blocker(code, message, HINTS[code])
