"""The backend over an island manager's REST interface.

Two rules come from how DALiuGE behaves. A session that is deployed with a wrong root runs for
ever; so roots are checked before. A call that fails may have been done; so only a failure that
proves that nothing was started is called one to repeat. How sessions are looked at is in
:mod:`~beampipe_dagster.backends.daliuge.looking`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

from beampipe_dagster.backends.base import SessionObservation, SessionPresence, SubmissionReceipt
from beampipe_dagster.backends.daliuge.looking import SESSION_ID, SessionLooks
from beampipe_dagster.backends.daliuge.manager import ROOTS_UNKNOWN, SESSION_ABSENT, IslandManager
from beampipe_dagster.backends.daliuge.physical import Drop, roots
from beampipe_dagster.backends.daliuge.states import DaliugeState, SessionState, is_absent, known_states
from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import (
    BackendError,
    BackendUnavailableError,
    BeampipeError,
    ConflictError,
    GraphError,
    InputError,
    SubmissionUncertainError,
)

_UNDEPLOYED = frozenset({SessionState.PRISTINE, SessionState.BUILDING})
_AT_WORK = frozenset({SessionState.DEPLOYING, SessionState.RUNNING})


class RestBackend:
    """Sessions on one island manager.

    Parameters
    ----------
    manager
        The island manager's client.
    clock
        Time.
    node_concurrency
        How many sessions are looked at at the same time.
    settle_seconds
        How long after a session said *finished* it is looked at again.
    verify_ssl
        Whether the manager's client checks certificates; said in receipts.
    """

    def __init__(
        self,
        *,
        manager: IslandManager,
        clock: Clock,
        node_concurrency: int = 4,
        settle_seconds: float = 1.0,
        verify_ssl: bool = True,
    ) -> None:
        self._manager = manager
        self._verify_ssl = verify_ssl
        self._clock = clock
        self._looks = SessionLooks(
            manager=manager, clock=clock, concurrency=node_concurrency, settle_seconds=settle_seconds
        )

    @property
    def url(self) -> str:
        """Base URL of the island manager."""
        return self._manager.url

    @property
    def island(self) -> str:
        """The island manager as drops name it: ``host:port``."""
        return urlsplit(self._manager.url).netloc

    @property
    def verify_ssl(self) -> bool:
        """Whether the manager's certificate is checked."""
        return self._verify_ssl

    def submit(
        self, session_id: str, drops: Sequence[Drop], *, before_deploy: Callable[[], None]
    ) -> SubmissionReceipt:
        """Create a session, append the graph, deploy it; see :class:`Backend`."""
        _check_session_id(session_id)
        real = [drop for drop in drops if "oid" in drop]
        starts = _checked_roots(session_id, real)
        self._create(session_id)
        try:
            self._manager.append(session_id, real)
            self._check_size(session_id, len(real))
        except GraphError:
            self._discard_quietly(session_id)
            raise
        except BackendError as error:
            self._discard_quietly(session_id)
            raise _nothing_runs(session_id, error) from error
        try:
            before_deploy()
        except BaseException:
            self._discard_quietly(session_id)
            raise
        self._deploy(session_id, real, starts)
        return SubmissionReceipt(
            session_id=session_id,
            manager_url=self._manager.url,
            drops=len(real),
            roots=len(starts),
            deployed_at=self._clock.now(),
        )

    def observe(
        self,
        sessions: Mapping[str, frozenset[str] | None],
        *,
        counted: Collection[str] | None = None,
        seconds: float | None = None,
    ) -> dict[str, SessionObservation]:
        """Look at many sessions; see :class:`Backend`."""
        return self._looks.observe(sessions, counted=counted, seconds=seconds)

    def presence(self, session_id: str) -> SessionPresence:
        """Look for a session; see :class:`Backend`."""
        _check_session_id(session_id)
        try:
            raw = self._manager.status(session_id)
        except BackendError as error:
            absent = error.code == SESSION_ABSENT
            return SessionPresence.ABSENT if absent else SessionPresence.UNREACHABLE
        if is_absent(raw):
            return SessionPresence.ABSENT
        states = set(known_states(raw))
        if not states or SessionState.UNKNOWN in states:
            return SessionPresence.UNREACHABLE
        return SessionPresence.UNDEPLOYED if states <= _UNDEPLOYED else SessionPresence.DEPLOYED

    def discard(self, session_id: str) -> None:
        """Delete a session that never ran; see :class:`Backend`."""
        found = self.presence(session_id)
        if found is SessionPresence.DEPLOYED:
            raise ConflictError(
                f"session {session_id} at {self._manager.url} has been deployed",
                code="session_deployed",
                hint="Cancel it instead; deleting it would leave its processes running.",
            )
        if found is SessionPresence.UNREACHABLE:
            raise self._cannot_be_seen(session_id)
        if found is SessionPresence.UNDEPLOYED:
            self._delete(session_id)

    def cancel(self, session_id: str) -> SessionObservation:
        """Cancel a session and look at it; see :class:`Backend`.

        One that was never deployed is deleted instead, and counts as cancelled.
        """
        _check_session_id(session_id)
        refusal: BackendError | None = None
        try:
            self._manager.cancel(session_id)
        except BackendUnavailableError as error:
            return self._looks.seen(session_id, DaliugeState.UNREACHABLE, reason=error.message)
        except BackendError as error:
            refusal = error
        seen = self.observe({session_id: None})[session_id]
        if seen.state in {DaliugeState.PRISTINE, DaliugeState.BUILDING}:
            return self._cancel_undeployed(session_id, seen)
        if seen.state not in {DaliugeState.DEPLOYING, DaliugeState.RUNNING} or seen.reason:
            return seen
        reason = "the manager accepted to cancel it, but it still runs"
        if refusal is not None:
            reason = f"the manager refused to cancel it: {refusal.message}"
        return replace(seen, reason=reason)

    def remove(self, session_id: str) -> None:
        """Cancel what still runs, then delete; see :class:`Backend`."""
        _check_session_id(session_id)
        found = self.presence(session_id)
        if found is SessionPresence.ABSENT:
            return
        if found is SessionPresence.UNREACHABLE:
            raise self._cannot_be_seen(session_id)
        if found is SessionPresence.DEPLOYED:
            with suppress(BackendError):
                self._manager.cancel(session_id)  # an ended session refuses, which is as good
            self._check_at_rest(session_id)
        self._delete(session_id)

    def nodes(self) -> list[str]:
        """The island manager's nodes; a refusal to tell them is a wait, since nothing was asked to be done."""
        try:
            return self._manager.nodes()
        except BackendUnavailableError:
            raise
        except BackendError as error:
            raise BackendUnavailableError(error.message, code=error.code, details=error.details) from error

    # ---------------------------------------------------------------- submitting

    def _create(self, session_id: str) -> None:
        try:
            self._manager.create(session_id)
        except ConflictError as error:
            # Not made by this call, so not this call's to delete.
            raise SubmissionUncertainError(
                f"session {session_id} at {self._manager.url} is there already",
                code="session_exists",
                hint="An earlier attempt made it. Look at what became of it.",
                details=error.details,
            ) from error
        except BackendError as error:
            self._discard_quietly(session_id)
            raise _nothing_runs(session_id, error) from error

    def _check_size(self, session_id: str, wanted: int) -> None:
        # A session that lost its drops would be deployed empty, and finish at once.
        size = self._manager.graph_size(session_id)
        if size != wanted:
            raise BackendUnavailableError(
                f"session {session_id} holds {size} of the {wanted} drops that were appended",
                code="graph_incomplete",
                hint="See the logs of the node manager; it may have been restarted.",
                details={"drops": size, "expected": wanted},
            )

    def _deploy(self, session_id: str, drops: Sequence[Drop], starts: Sequence[str]) -> None:
        try:
            self._manager.deploy(session_id, starts)
        except SubmissionUncertainError:
            raise
        except BackendError as error:
            if self._surely_nothing(session_id, drops, error):
                raise _nothing_runs(session_id, error) from error
            raise SubmissionUncertainError(
                f"deploying session {session_id} failed in the middle: {error.message}",
                hint="It may run. Look for the session before anything is submitted again.",
                details={**error.details, "cause": error.code},
            ) from error

    def _surely_nothing(self, session_id: str, drops: Sequence[Drop], error: BackendError) -> bool:
        """Whether a failed deployment is proven to have started nothing; cleans up if so."""
        if error.details.get("sent") is False:
            self._discard_quietly(session_id)
            return True
        if error.code == SESSION_ABSENT:
            lost = error.details.get("nodes", {})
            proven = bool(lost) and all(drop.get("node") in lost for drop in drops)
            if proven:  # other nodes have deployed nothing, and call that finished
                with suppress(BeampipeError):
                    self._manager.delete(session_id)
            return proven
        if error.code == ROOTS_UNKNOWN:
            # The manager was restarted and forgot the graph. The drops are there and wait for ever
            # for somebody to start them: nothing has run, and nothing will once they are gone.
            with suppress(BeampipeError):
                self._manager.cancel(session_id)
            with suppress(BeampipeError):
                self._manager.delete(session_id)
            return self.presence(session_id) is SessionPresence.ABSENT
        return False

    def _discard_quietly(self, session_id: str) -> None:
        # What remains is a session that does nothing; its id is never used again.
        with suppress(BeampipeError):
            self.discard(session_id)

    def _check_at_rest(self, session_id: str) -> None:
        # A session that is deleted while it runs leaves its processes and the node's workers busy.
        try:
            states = set(known_states(self._manager.status(session_id)))
        except BackendError as error:
            raise self._cannot_be_seen(session_id) from error
        if states & _AT_WORK and SessionState.FAILED not in states:
            raise BackendUnavailableError(
                f"session {session_id} at {self._manager.url} still runs and cannot be cancelled",
                code="session_still_runs",
                hint="It is tried again later; if it stays so, look at the node manager.",
            )

    def _cannot_be_seen(self, session_id: str) -> BackendUnavailableError:
        return BackendUnavailableError(
            f"session {session_id} at {self._manager.url} cannot be looked at",
            hint="See that the island manager and its nodes run.",
        )

    def _delete(self, session_id: str) -> None:
        try:
            self._manager.delete(session_id)
        except BackendError as error:
            # A restarted manager deletes the node's session and then fails over its own list.
            if self.presence(session_id) is not SessionPresence.ABSENT:
                raise BackendUnavailableError(
                    f"session {session_id} could not be deleted: {error.message}",
                    hint=error.hint,
                    details=error.details,
                ) from error

    def _cancel_undeployed(self, session_id: str, seen: SessionObservation) -> SessionObservation:
        try:
            self.discard(session_id)
        except (BackendError, ConflictError) as error:
            reason = f"it could not be deleted: {error.message}"
            return self._looks.seen(session_id, seen.state, raw=seen.raw, reason=reason)
        reason = "it was never deployed; it has been deleted"
        return self._looks.seen(session_id, DaliugeState.CANCELLED, raw=seen.raw, reason=reason)


def _check_session_id(session_id: str) -> None:
    if not SESSION_ID.fullmatch(session_id):
        raise InputError(
            f"{session_id!r} cannot be a session id",
            code="invalid_session_id",
            hint="Use 1 to 200 letters, digits, dots and hyphens: with anything else the manager "
            "makes a session that it can neither show nor delete.",
        )


def _checked_roots(session_id: str, drops: Sequence[Drop]) -> list[str]:
    oids = [str(drop["oid"]) for drop in drops]
    starts = roots(drops)
    problem = None
    if not oids:
        problem = "it has no drops"
    elif len(set(oids)) != len(oids):
        problem = "it has an identifier twice"
    elif not starts:
        problem = "every drop waits for another one, so that it would run for ever"
    elif any("," in start for start in starts):
        problem = "the identifier of a root has a comma"
    if problem:
        raise GraphError(
            f"the physical graph of session {session_id} cannot be deployed: {problem}",
            code="graph_not_deployable",
            hint="Look for a cycle in the logical graph, and translate it again.",
        )
    return starts


def _nothing_runs(session_id: str, error: BackendError) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"session {session_id} was not started: {error.message}",
        code=error.code if isinstance(error, BackendUnavailableError) else None,
        hint=error.hint,
        details={**error.details, "cause": error.code},
    )
