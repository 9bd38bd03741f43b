"""The staging jobs of one execution: made once, followed over restarts, made again only when they are over.

A job's row is there before anything is sent; its URL is written down before it is told to run. What is next for
each job is decided in :mod:`~beampipe_dagster.discovery.staging.round`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.discovery.staging.client import JOB_GONE, StagingClient
from beampipe_dagster.discovery.staging.options import WAITING, Progress, StagingOptions, Tell
from beampipe_dagster.discovery.staging.plan import Item, urls_of
from beampipe_dagster.discovery.staging.redaction import hidden
from beampipe_dagster.discovery.staging.results import earliest, sorted_urls
from beampipe_dagster.discovery.staging.round import Round
from beampipe_dagster.errors import ArchiveError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import staging as store
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.staging import StagingJob
from beampipe_dagster.ledger.tables_staging import StagingState


class StagingService:
    """Brings the files of executions online.

    Parameters
    ----------
    client
        Makes a client; each call has its own.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        client: Callable[[], StagingClient],
        options: StagingOptions,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._client = client
        self._options = options

    def advance(
        self,
        execution_id: str,
        items: Sequence[Item],
        *,
        confirm: Callable[[], None],
        tell: Tell,
    ) -> Progress:
        """Do what is next for these files, and wait a while for it to be done.

        The caller holds the execution, and nobody else works on its jobs.

        Parameters
        ----------
        confirm
            Raises when the execution went to somebody else; called before anything is sent.

        Raises
        ------
        ArchiveError
            ``staging_failed``: some files could not be staged, with the reason for each scheduling block;
            ``staging_no_access``; ``staging_login_refused``; ``staging_unavailable`` and the like.
        ConfigError
            There are no credentials.
        """
        client = self._client()
        patient_until = self._clock.monotonic() + self._options.patience_seconds
        try:
            self._take_over(execution_id)
            work = Round(
                ledger=self._ledger,
                clock=self._clock,
                ids=self._ids,
                client=client,
                options=self._options,
                execution_id=execution_id,
                items=items,
                confirm=confirm,
                tell=tell,
            )
            while True:
                progress = work.once()
                if progress.done or self._clock.monotonic() >= patient_until:
                    return progress
                self._clock.sleep(self._options.poll_seconds)
        finally:
            client.close()

    def urls(self, execution_id: str, wanted: Mapping[str, Item], *, tell: Tell) -> dict[str, str]:
        """The URLs of staged files, asked for anew and good for a while; nothing of them is kept.

        Parameters
        ----------
        wanted
            By its identifier: each file.

        Returns
        -------
        dict
            By placeholder, for each file its URL and that of its checksum.

        Raises
        ------
        ArchiveError
            ``staging_expired``: some are gone again; they are staged anew by the next call of :meth:`advance`.
            ``staging_waiting``: some are not there yet.
        """
        with self._ledger.read() as conn:
            jobs = store.of(conn, execution_id, live=True)
        ready = [job for job in jobs if job.state is StagingState.COMPLETED]
        lacking = set(wanted).difference(*(job.items for job in ready))
        if lacking:
            raise ArchiveError(
                f"{len(lacking)} of {len(wanted)} files are not staged yet",
                code=WAITING,
                hint="the step staged_data goes on by itself",
            )
        client = self._client()
        found: dict[str, str] = {}
        try:
            for job in ready:
                items = [wanted[name] for name in job.items if name in wanted]
                if items:
                    found |= self._fresh(client, job, items, tell)
        finally:
            client.close()
        return found

    def _fresh(self, client: StagingClient, job: StagingJob, items: list[Item], tell: Tell) -> dict[str, str]:
        why = ""
        try:
            found = urls_of(items, sorted_urls(client.results(job.job_url or "")))
            until = earliest(found.values())
            if until is not None and until < self._clock.now() + self._options.min_validity:
                why = f"its URLs are good until {rfc3339(until)} only"
        except ArchiveError as error:
            if error.code not in {JOB_GONE, "staging_result_missing"}:
                raise
            why = error.message
        if not why:
            return found
        self._expire(job, why, tell)
        raise ArchiveError(
            f"the staged files of {job.group_key} are gone again: {why}",
            code="staging_expired",
            hint="they are staged anew; nothing was submitted",
        )

    def _expire(self, job: StagingJob, why: str, tell: Tell) -> None:
        with self._ledger.begin() as conn:
            expired = store.move(conn, job, {"state": StagingState.EXPIRED, "error": hidden(why)[:500]})
        tell("execution.staging_expired", expired.as_dict())

    def _take_over(self, execution_id: str) -> None:
        """An intent that another process left behind may have been carried out."""
        with self._ledger.begin() as conn:
            for job in store.of(conn, execution_id, live=True):
                if job.state is StagingState.INTENDED:
                    store.move(conn, job, {"state": StagingState.UNCERTAIN, "error": "its process died"})
