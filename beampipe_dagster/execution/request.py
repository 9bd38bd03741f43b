"""What an operator asks for, and everything that speaks against it, found at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue, digest
from beampipe_dagster.config.project import ExecutionAutomation, ProjectConfig
from beampipe_dagster.errors import BeampipeError, ConflictError, InputError
from beampipe_dagster.execution.decisions import PROFILE_CAP, Cap
from beampipe_dagster.execution.options import AS_USUAL, LaunchOptions
from beampipe_dagster.ledger import archive, executions
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.sources.readiness import blocker, readiness

KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")
"""An idempotency key: 1 to 128 visible ASCII characters."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that speaks against a launch."""

    code: str
    message: str
    hint: str
    source: str | None = None

    def as_dict(self) -> dict[str, JsonValue]:
        """The problem as JSON."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "source": self.source}


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """One execution, asked for by a person.

    Attributes
    ----------
    sources
        Whose current signatures it is about.
    profile
        Name of the deployment profile; ``None`` takes what automation would.
    key
        By which the request is known again: the same key and request give the same execution.
    force
        Whether the caps of the survey and of the platform are overruled. A profile's cap never is.
    """

    project_id: str
    sources: tuple[str, ...]
    actor: str
    profile: str | None = None
    options: LaunchOptions = AS_USUAL
    key: str | None = None
    force: bool = False

    def checked(self) -> LaunchRequest:
        """The request with its texts trimmed.

        Raises
        ------
        InputError
            ``no_sources``, ``invalid_idempotency_key``.
        """
        if self.key is not None and not KEY.fullmatch(self.key):
            raise InputError(
                f"{self.key[:130]!r} cannot be an idempotency key",
                code="invalid_idempotency_key",
                hint="give 1 to 128 visible ASCII characters, without blanks",
            )
        names = tuple(name.strip() for name in self.sources)
        if not names:
            raise InputError("no sources were given", code="no_sources", hint="name at least one source")
        profile = self.profile.strip() if self.profile else None
        return LaunchRequest(self.project_id, names, self.actor, profile, self.options, self.key, self.force)

    @property
    def sha256(self) -> str:
        """Digest of what is asked for, the key and the person aside."""
        value: dict[str, JsonValue] = {
            "project_id": self.project_id,
            "sources": [*self.sources],
            "profile": self.profile,
            "options": self.options.as_json(),
            "force": self.force,
        }
        return digest(value)


def replayed(conn: Connection, request: LaunchRequest) -> Execution | None:
    """The execution that the same request created before; ``None`` for a new one.

    Raises
    ------
    ConflictError
        ``idempotency_key_reused``: the key belongs to another request of this person.
    """
    if request.key is None:
        return None
    known = executions.by_request(conn, request.actor, request.key)
    if known is None:
        return None
    execution, sha256 = known
    if sha256 != request.sha256:
        raise ConflictError(
            f"the idempotency key {request.key!r} was used for another request: execution {execution.id}",
            code="idempotency_key_reused",
            hint="give another key, or the same sources and options as then",
            details={"execution_id": execution.id},
        )
    return execution


def about_sources(
    conn: Connection, project_id: str, names: Sequence[str], rows: Sequence[Source]
) -> Iterator[Problem]:
    """What speaks against executing each of these sources now."""
    known = {row.source_identifier: row for row in rows}
    busy = executions.active_sources(conn, project_id)
    metadata = archive.metadata_of(conn, project_id, sorted(known))
    for name, times in Counter(names).items():
        if times > 1:
            yield Problem(
                "duplicate_source", f"{name!r} is given {times} times", "give each source once", name
            )
        if name in busy:
            yield Problem(
                "source_already_executing",
                f"an active execution already holds {name}",
                "wait until it is terminal: beampipe execution list --active",
                name,
            )
            continue
        row = known.get(name)
        why = blocker(row, metadata.get(name, {}))
        if why is not None:
            yield Problem(why.code, f"{name}: {why.message}", why.hint, name)
        elif row is not None and readiness(row, metadata.get(name, {})).signature_executed:
            yield Problem(
                "signature_already_executed",
                f"{name}: its current signature was executed",
                "its results stand; new data in the archive make a new signature",
                name,
            )


def about_survey(config: ProjectConfig, names: Sequence[str]) -> Iterator[Problem]:
    """What speaks against the request in the survey's own rules."""
    rules = config.automation.execution
    if rules is not None and len(names) > rules.max_sources_per_execution:
        limit = rules.max_sources_per_execution
        yield Problem(
            "too_many_sources",
            f"{len(names)} sources are given, and an execution of {config.metadata.id} takes {limit} at most",
            f"launch them in parts of {limit}, or raise max_sources_per_execution in the survey",
        )
    name = (rules or ExecutionAutomation()).archive_name
    if config.adapters.required and name not in config.adapters.required:
        yield Problem(
            "archive_not_required",
            f"the survey takes its datasets from {name!r}, which is not among adapters.required",
            "correct automation.execution.archive_name or adapters.required in the survey",
        )


def about_caps(caps: Sequence[Cap], *, force: bool) -> Iterator[Problem]:
    """Which rooms are full."""
    for cap in caps:
        if cap.full and (cap.code == PROFILE_CAP or not force):
            hint = "wait until an execution has ended"
            if cap.code != PROFILE_CAP:
                hint += ", or launch it with --force, which overrules this cap"
            yield Problem(cap.code, f"there is no room ({cap.words()})", hint)


def of_error(error: BeampipeError) -> Problem:
    """An error as one of several problems."""
    return Problem(error.code, error.message, error.hint)


def refuse(problems: Sequence[Problem]) -> None:
    """Refuse a launch, with all that speaks against it.

    Raises
    ------
    ConflictError
        The code of the one problem, or ``launch_refused`` for several; ``details.problems`` has all of them.
    """
    if not problems:
        return
    listed: list[JsonValue] = [problem.as_dict() for problem in problems]
    first, *others = problems
    if not others:
        raise ConflictError(first.message, code=first.code, hint=first.hint, details={"problems": listed})
    lines = "".join(f"\n  [{problem.code}] {problem.message}" for problem in problems)
    raise ConflictError(
        f"{len(problems)} things speak against it:{lines}",
        code="launch_refused",
        hint="correct all of them; nothing was launched",
        details={"problems": listed},
    )
