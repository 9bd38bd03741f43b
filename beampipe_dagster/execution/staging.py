"""The step that brings an execution's files online, and the filling in of their URLs when it is submitted.

A step waits for the archive a little and then ends: the execution is launched again later, and goes on with the
same jobs. Files that expire before the submission are staged again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.staging.options import WAITING, Progress, Tell
from beampipe_dagster.discovery.staging.plan import Plan, filled, placeholders_in
from beampipe_dagster.discovery.staging.service import StagingService
from beampipe_dagster.errors import ArchiveError, DataError
from beampipe_dagster.execution.options import LaunchOptions
from beampipe_dagster.execution.staged import plan_of, wants_staging
from beampipe_dagster.execution.steps import ExecutionSteps, StepReport
from beampipe_dagster.ledger import executions, fsm, projects
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ExecutionPhase, Status


class StagingStep:
    """Stages the data of executions.

    Parameters
    ----------
    steps
        Gives the lease, the ledger and the story.
    service
        Follows the jobs at the archive.
    """

    def __init__(self, *, steps: ExecutionSteps, service: StagingService) -> None:
        self._steps = steps
        self._ledger = steps.ledger
        self._service = service

    def staged_data(self, execution_id: str, *, holder: str) -> StepReport:
        """Stage the files of an execution, as far as the archive is now.

        Raises
        ------
        ArchiveError
            ``staging_waiting``: the archive is still at it; the step is launched again later. Others end the
            execution, and say for each scheduling block why.
        """
        with self._steps.working(execution_id, holder) as (execution, held):
            plan = self._plan(execution)
            if plan is None:
                return StepReport(execution, facts={"staging": "not wanted"}, done_before=True)
            execution = self._begin(execution)  # noqa: PLW2901  # the same execution, moved
            progress = self._service.advance(
                execution_id, plan.items, confirm=held.confirm, tell=self._teller(execution)
            )
            if not progress.done:
                raise _waiting(progress)
            facts = facts_of(progress)
            with self._ledger.begin() as conn:
                known = executions.get(conn, execution_id, lock=True)
                execution = executions.move(  # noqa: PLW2901  # the same execution, moved
                    conn, known, now=self._steps.clock.now(), patch=fsm.StatusPatch(clear_error=True)
                )
            return StepReport(execution, facts=facts)

    def workflow_manifest(self, execution_id: str, *, holder: str) -> StepReport:
        """The manifest; an execution that was asked to stage where its survey does not is staged first.

        Raises
        ------
        BeampipeError
            As :meth:`staged_data` and the step of the manifest.
        """
        with self._ledger.read() as conn:
            execution = executions.get(conn, execution_id)
        if LaunchOptions.of(execution.options).do_stage:
            self.staged_data(execution_id, holder=holder)
        return self._steps.workflow_manifest(execution_id, holder=holder)

    def fill(self, execution: Execution, drops: Any) -> Any:  # noqa: ANN401  # a physical graph
        """A physical graph with the URLs of staged files, for DALiuGE only: it is never kept.

        Raises
        ------
        ArchiveError
            ``staging_expired``: files are gone again; the step before stages them anew. Or the archive is away.
        DataError
            ``staged_placeholder_unknown``: the graph asks for a file that the execution does not stage.
        """
        asked = placeholders_in(drops)
        if not asked:
            return drops
        with self._ledger.read() as conn:
            revision = projects.revision(conn, execution.project_config_id)
            config = ProjectConfig.from_json(revision.spec)
            plan, _ = plan_of(conn, execution.project_module, execution.sources, config)
        wanted = {
            item.id: item for item in plan.items if {item.placeholder, item.checksum_placeholder} & asked
        }
        known = {text for item in wanted.values() for text in (item.placeholder, item.checksum_placeholder)}
        if strange := sorted(asked - known):
            raise DataError(
                f"the graph asks for the staged file {strange[0]}, which is none of this execution's",
                code="staged_placeholder_unknown",
                hint="a plug-in may move placeholders of staged URLs, but not change them",
            )
        return filled(drops, self._service.urls(execution.id, wanted, tell=self._teller(execution)))

    def _plan(self, execution: Execution) -> Plan | None:
        with self._ledger.read() as conn:
            revision = projects.revision(conn, execution.project_config_id)
            config = ProjectConfig.from_json(revision.spec)
            if not wants_staging(config, execution):
                return None
            plan, _ = plan_of(conn, execution.project_module, execution.sources, config)
        return plan

    def _begin(self, execution: Execution) -> Execution:
        if execution.status is not Status.PENDING:
            return execution
        with self._ledger.begin() as conn:
            return executions.move(
                conn,
                execution,
                now=self._steps.clock.now(),
                patch=fsm.StatusPatch(
                    status=Status.RUNNING, execution_phase=ExecutionPhase.STAGE_AND_MANIFEST
                ),
            )

    def _teller(self, execution: Execution) -> Tell:
        def tell(event_type: str, payload: dict[str, Any]) -> None:
            with self._ledger.begin() as conn:
                self._steps.tell(conn, execution, event_type, payload)

        return tell


def facts_of(progress: Progress) -> dict[str, Any]:
    """What is shown of staged data; no URL of a file is part of it."""
    expires = min((job.expires_at for job in progress.jobs if job.expires_at), default=None)
    return {
        "files": sum(len(job.items) for job in progress.jobs),
        "jobs": [job.as_dict() for job in progress.jobs],
        "expires_at": rfc3339(expires) if expires else None,
    }


def _waiting(progress: Progress) -> ArchiveError:
    states = Counter(job.state.value for job in progress.jobs)
    listed = ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "none yet"
    more = f"; and {len(progress.waiting_for) - 3} more" if len(progress.waiting_for) > 3 else ""
    return ArchiveError(
        f"the archive is still staging ({listed}): {'; '.join(progress.waiting_for[:3])}{more}",
        code=WAITING,
        hint="tapes take minutes to hours; the same jobs are looked at again by themselves",
        details={"jobs": [job.as_dict() for job in progress.jobs]},
    )
