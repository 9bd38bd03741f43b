"""Deployment profiles, with a revision that counts their changes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import ConflictError, NotFoundError
from beampipe_dagster.ledger.engine import queue
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.tables import daliuge_deployment_profile as profiles


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """A deployment profile in the ledger."""

    id: str
    name: str
    project_module: str | None
    is_default: bool
    max_concurrent_executions: int | None
    revision: int
    spec: dict[str, JsonValue]
    spec_sha256: str
    created_at: datetime
    updated_at: datetime


def put(
    conn: Connection,
    *,
    profile_id: str,
    name: str,
    project_module: str | None,
    is_default: bool,
    max_concurrent_executions: int | None,
    spec: JsonValue,
    spec_sha256: str,
    now: datetime,
) -> tuple[StoredProfile, bool]:
    """Add a profile or replace the one of that name; the same content changes nothing.

    Returns
    -------
    tuple
        The stored profile, and whether anything changed.

    Raises
    ------
    ConflictError
        ``default_profile_exists``: the scope has another default.
    """
    queue(conn, "deployment_profiles")
    row = conn.execute(sa.select(profiles).where(profiles.c.name == name)).first()
    known = to_value(StoredProfile, row) if row else None
    if known and known.spec_sha256 == spec_sha256:
        return known, False
    if is_default:
        _refuse_second_default(conn, name, project_module)
    values = {
        "project_module": project_module,
        "is_default": is_default,
        "max_concurrent_executions": max_concurrent_executions,
        "spec": spec,
        "spec_sha256": spec_sha256,
        "updated_at": now,
    }
    if known:
        conn.execute(
            sa.update(profiles).where(profiles.c.id == known.id).values(revision=known.revision + 1, **values)
        )
    else:
        conn.execute(
            sa.insert(profiles).values(id=profile_id, name=name, revision=1, created_at=now, **values)
        )
    return by_name(conn, name), True


def _refuse_second_default(conn: Connection, name: str, project_module: str | None) -> None:
    scope = (
        profiles.c.project_module.is_(None)
        if project_module is None
        else profiles.c.project_module == project_module
    )
    other = conn.execute(
        sa.select(profiles.c.name).where(scope, profiles.c.is_default, profiles.c.name != name)
    ).scalar()
    if other is not None:
        raise ConflictError(
            f"profile {other!r} is already the default of {project_module or 'all projects'}",
            code="default_profile_exists",
            hint=f'set "is_default": false in {name!r} or in {other!r}',
        )


def by_name(conn: Connection, name: str) -> StoredProfile:
    """The profile of this name.

    Raises
    ------
    NotFoundError
        ``profile_not_found``.
    """
    row = conn.execute(sa.select(profiles).where(profiles.c.name == name)).first()
    if row is None:
        known = [item.name for item in everything(conn)]
        raise NotFoundError(
            f"there is no deployment profile {name!r}",
            code="profile_not_found",
            hint=f"known profiles: {', '.join(known) or 'none'}; add one with: beampipe profile add FILE",
        )
    return to_value(StoredProfile, row)


def resolve(conn: Connection, *, name: str | None, project_module: str) -> StoredProfile:
    """The named profile, else the project's default, else the default of all projects.

    An unknown name is an error and never the default.

    Raises
    ------
    NotFoundError
        ``profile_not_found``, ``no_default_profile``.
    ConflictError
        ``profile_of_another_project``.
    """
    if name is not None:
        found = by_name(conn, name)
        if found.project_module not in (None, project_module):
            raise ConflictError(
                f"profile {name!r} belongs to project {found.project_module!r}",
                code="profile_of_another_project",
                hint=f'leave "project_module" out of it, or name a profile of {project_module!r}',
            )
        return found
    defaults = {item.project_module: item for item in everything(conn) if item.is_default}
    default = defaults.get(project_module) or defaults.get(None)
    if default is None:
        raise NotFoundError(
            f"project {project_module!r} names no deployment profile and there is no default one",
            code="no_default_profile",
            hint="set automation.execution.deployment_profile_name, or add a default profile",
        )
    return default


def everything(conn: Connection) -> list[StoredProfile]:
    """All profiles by name."""
    return [
        to_value(StoredProfile, row) for row in conn.execute(sa.select(profiles).order_by(profiles.c.name))
    ]
