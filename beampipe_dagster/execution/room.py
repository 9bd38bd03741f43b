"""The rooms that executions share, counted in the ledger: the survey's own, the platform's, the profile's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.engine import Connection

from beampipe_dagster.config.project import ExecutionAutomation, ProjectConfig
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.execution.decisions import (
    FAIR_SHARE,
    GLOBAL_CAP,
    PROFILE_CAP,
    PROJECT_CAP,
    Cap,
    Contender,
    budget,
    levelled,
    room,
    turns,
)
from beampipe_dagster.ledger import decisions, executions, pending, profiles, projects
from beampipe_dagster.ledger.pending import Demand
from beampipe_dagster.ledger.profiles import StoredProfile

Counts = tuple[int, dict[str, int], dict[str, int]]
"""Active executions: in all, by survey, by profile."""


def caps_of(
    project_id: str, rules: ExecutionAutomation, profile: StoredProfile, *, max_in_flight: int, counts: Counts
) -> list[Cap]:
    """The caps of a survey, in the order in which they are named when several are full."""
    total, by_project, by_profile = counts
    return [
        Cap(PROJECT_CAP, by_project.get(project_id, 0), rules.concurrent_execution_run_limit),
        Cap(GLOBAL_CAP, total, max_in_flight),
        Cap(PROFILE_CAP, by_profile.get(profile.id, 0), profile.max_concurrent_executions),
    ]


@dataclass(frozen=True, slots=True)
class Share:
    """How many executions a survey may begin now.

    Attributes
    ----------
    runs
        The number.
    reason
        Code of what limits it.
    served
        What counts as given to the survey before those.
    """

    runs: int
    reason: str
    served: float


@dataclass(frozen=True, slots=True)
class _Survey:
    contender: Contender
    profile_id: str


def share_of(
    conn: Connection,
    project_id: str,
    rules: ExecutionAutomation,
    caps: Sequence[Cap],
    *,
    profile_id: str,
    wanted: int,
    max_in_flight: int,
    live: timedelta,
    now: datetime,
) -> Share:
    """What a survey that could begin ``wanted`` executions may take, so that none with waiting sources starves.

    Surveys count that executed something by themselves lately (a tick within ``live``): room is never kept for
    one whose clock stands still.
    """
    runs, reason = room(caps, tick_limit=rules.tick_execution_run_limit)
    given = decisions.served(conn)
    mine = Contender(
        project_id,
        _current(caps, PROJECT_CAP),
        min(wanted, runs),
        float(rules.weight or 1),
        given.get(project_id, 0.0),
    )
    surveys = [
        _Survey(mine, profile_id),
        *_rivals(conn, project_id, max_in_flight=max_in_flight, live=live, given=given, now=now),
    ]
    contenders = levelled([one.contender for one in surveys])
    free_profile = _free(caps, PROFILE_CAP)
    if free_profile is not None:
        same = {one.contender.project_id for one in surveys if one.profile_id == profile_id}
        of_profile = turns([one for one in contenders if one.project_id in same], free_profile)
        contenders = [replace(one, wanted=of_profile.get(one.project_id, one.wanted)) for one in contenders]
    fair = turns(contenders, _free(caps, GLOBAL_CAP) or 0)[project_id]
    served = contenders[0].served
    return Share(runs, reason, served) if fair >= mine.wanted else Share(fair, FAIR_SHARE, served)


def _free(caps: Sequence[Cap], code: str) -> int | None:
    return next(cap.room for cap in caps if cap.code == code)


def _current(caps: Sequence[Cap], code: str) -> int:
    return next(cap.current for cap in caps if cap.code == code)


def _rivals(
    conn: Connection,
    project_id: str,
    *,
    max_in_flight: int,
    live: timedelta,
    given: dict[str, float],
    now: datetime,
) -> list[_Survey]:
    """The other surveys that want a part of the rooms now."""
    live_since = now - live
    ticks = {name for name, tick in decisions.last_ticks(conn).items() if tick > live_since}
    wanting = pending.demand(conn, sorted(ticks - {project_id}), now=now)
    if not wanting:
        return []
    counts = executions.active_counts(conn)
    found: list[_Survey] = []
    for revision in projects.all_active(conn):
        name = revision.project_id
        demand = wanting.get(name)
        if demand is None:
            continue
        try:
            rules = ProjectConfig.from_json(revision.spec).automation.execution
            if rules is None or not rules.enabled:
                continue
            profile = profiles.resolve(conn, name=rules.deployment_profile_name, project_module=name)
        except BeampipeError:
            continue  # it cannot admit anything, so that nothing is kept for it
        caps = caps_of(name, rules, profile, max_in_flight=max_in_flight, counts=counts)
        wanted = min(_wanted(rules, demand, now), room(caps, tick_limit=rules.tick_execution_run_limit)[0])
        if wanted:
            contender = Contender(
                name, caps[0].current, wanted, float(rules.weight or 1), given.get(name, 0.0)
            )
            found.append(_Survey(contender, profile.id))
    return found


def _wanted(rules: ExecutionAutomation, demand: Demand, now: datetime) -> int:
    """Executions that a survey would begin if there were room for all."""
    long = demand.since is None or now - demand.since >= timedelta(minutes=rules.max_wait_minutes)
    if demand.sources < rules.min_sources_to_trigger and not long:
        return 0
    return budget(-(-demand.sources // rules.max_sources_per_execution))
