"""Client of DALiuGE's data island manager: one method a call, errors by what they say.

An island manager hands each call to all of its node managers. Their failures come back as status 555
with JSON that calls itself HTML: ``{"type": "SubManagerException", "args": {"<node>": {"type":
"NoSessionException", ...}}}``. The inner types decide what an error is here; the status does not.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import quote

import httpx

from beampipe_dagster.backends.daliuge._http import Service, json_of
from beampipe_dagster.backends.daliuge.physical import Drop
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import (
    BackendError,
    BackendUnavailableError,
    BeampipeError,
    ConflictError,
    GraphError,
    SubmissionUncertainError,
)

SESSION_ABSENT = "session_absent"
"""Code of the error for a session that no asked node knows."""
NODE_UNREACHABLE = "node_unreachable"
"""Code of the error for an island manager that answers while a node manager does not."""
ROOTS_UNKNOWN = "roots_unknown"
"""Code of the error for a deployment whose starting drops the island manager does not know."""

_READ_SECONDS = 15.0  # an island manager takes 10 s to find out that a node manager is down
_WRITE_SECONDS = 180.0  # 5,000 drops take about 10 s to append and as long to deploy
_LOG_BYTES = 2048
_DONE: JsonValue = {"Status": "Success"}
_LOUD = frozenset({"USER", "ERROR", "CRITICAL"})
_TAGS = re.compile(r"</?pre>|<a href=[^>]*>|</a>")
_NODE_AWAY = frozenset(
    {
        "SubManagerException",
        "RestClientException",
        "ConnectionError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "BrokenPipeError",
        "RemoteDisconnected",
        "BadStatusLine",
        "TimeoutError",
        "timeout",
        "gaierror",
        "OSError",
    }
)


def manager_url(host: str, port: int, *, https: bool = False) -> str:
    """Base URL of a manager from a profile's host and port; port 80 is left out."""
    return f"{'https' if https else 'http'}://{host}{'' if port == 80 else f':{port}'}"


class IslandManager:
    """A data island manager at a URL. Safe to use from several threads.

    Parameters
    ----------
    url
        Base URL, for example ``http://dim.example.org:8001``.
    connect_seconds
        Limit for a connection.
    read_seconds
        Limit for each wait in the cheap calls; more than the 10 s after which the manager itself
        gives up on a node.
    write_seconds
        Limit for each wait while a graph is appended or deployed.
    verify
        Whether certificates are checked, or the context to check them with.
    client
        A client to use instead of an own one.
    headers
        Header fields of every request; never shown.

    Raises
    ------
    ConfigError
        ``invalid_url``.

    Notes
    -----
    Every method raises :class:`~beampipe_dagster.errors.BackendUnavailableError` when the manager
    or one of its nodes is away (``details["sent"]`` is False when the request was never sent) and
    :class:`~beampipe_dagster.errors.BackendError` with code ``session_absent`` when the session is
    not known, ``session_state`` when its state does not allow the call, else ``manager_refused``.
    """

    def __init__(
        self,
        *,
        url: str,
        connect_seconds: float = 3.0,
        read_seconds: float = _READ_SECONDS,
        write_seconds: float = _WRITE_SECONDS,
        verify: bool | ssl.SSLContext = True,
        client: httpx.Client | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._service = Service(
            name="island manager",
            url=url,
            connect_seconds=connect_seconds,
            verify=verify,
            client=client,
            headers=headers,
        )
        self._read_seconds = read_seconds
        self._write_seconds = write_seconds

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return self._service.url

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def create(self, session_id: str) -> None:
        """Create a session on every node.

        Raises
        ------
        ConflictError
            ``session_exists``.
        """
        response = self._service.send(
            "POST", "/api/sessions", seconds=self._read_seconds, json={"sessionId": session_id}
        )
        self._expect(response, {"sessionId": session_id})

    def append(self, session_id: str, drops: Sequence[Drop]) -> None:
        """Add placed drops to a session.

        Raises
        ------
        GraphError
            ``graph_refused``: a drop is on a node of another island, cannot be built or is there
            already. The session is of no use any more.
        """
        response = self._service.send(
            "POST",
            _path(session_id, "/graph/append"),
            seconds=self._write_seconds,
            json=list(drops),
        )
        try:
            self._expect(response, _DONE)
        except BackendError as error:
            if error.code != "manager_refused":
                raise
            raise GraphError(
                f"DALiuGE refused the graph of session {session_id}: {error.details['reason']}",
                code="graph_refused",
                hint="See that every drop's class can be imported by the node manager, that no "
                "identifier is there twice and that the nodes belong to this island manager.",
                details=error.details,
            ) from error

    def deploy(self, session_id: str, completed: Sequence[str]) -> None:
        """Build a session's drops and start it.

        Parameters
        ----------
        session_id
            The session.
        completed
            The drops to start with: the graph's roots.

        Raises
        ------
        BackendUnavailableError
            The request was not sent: nothing runs.
        BackendError
            ``session_absent``: the nodes in ``details["nodes"]`` do not know the session;
            ``roots_unknown``: nothing was started, but the session stays running for ever.
        SubmissionUncertainError
            Any other failure: it may run.
        """
        path = _path(session_id, "/deploy")
        # An empty list would be read as one drop without a name.
        form = {"completed": ",".join(completed)} if completed else None
        try:
            response = self._service.send("POST", path, seconds=self._write_seconds, form=form)
            self._expect(response, _DONE)
        except BeampipeError as error:
            if error.details.get("sent") is False or error.code in {SESSION_ABSENT, ROOTS_UNKNOWN}:
                raise
            raise SubmissionUncertainError(
                f"deploying session {session_id} failed in the middle: {error.message}",
                hint="It may run. Look for the session before anything is submitted again.",
                details={**error.details, "cause": error.code},
            ) from error

    def status(self, session_id: str) -> JsonValue:
        """The session's state: one a node; see :mod:`~beampipe_dagster.backends.daliuge.states`."""
        return self._get(_path(session_id, "/status"))

    def graph_status(self, session_id: str) -> JsonValue:
        """The state of each drop; only from the time on at which the session runs."""
        return self._get(_path(session_id, "/graph/status"))

    def node_graph_status(self, node: str, session_id: str) -> JsonValue:
        """The state of each drop on one node, asked through the island manager."""
        path = _path(session_id, "/graph/status").removeprefix("/api")
        return self._get(f"/api/node/{quote(node, safe='')}{path}")

    def node_sessions(self, node: str) -> dict[str, JsonValue]:
        """The state of every session on one node, asked through the island manager in one request.

        What takes the manager one call for each session otherwise; a node keeps a session until it is
        deleted or the node is restarted.
        """
        response = self._service.send(
            "GET", f"/api/node/{quote(node, safe='')}/sessions", seconds=self._read_seconds
        )
        listed = self._value(response)
        if not isinstance(listed, list):
            raise self._service.nonsense(response)
        sessions = [one for one in listed if isinstance(one, dict) and isinstance(one.get("sessionId"), str)]
        if len(sessions) != len(listed):
            raise self._service.nonsense(response)  # half a list would make the other half lost
        return {str(one["sessionId"]): one.get("status") for one in sessions}

    def graph_size(self, session_id: str) -> int:
        """How many drops the nodes hold; 0 also when they do not know the session."""
        path = _path(session_id, "/graph/size")
        response = self._service.send("GET", path, seconds=self._read_seconds)
        size = self._value(response)
        if isinstance(size, int) and not isinstance(size, bool):
            return size
        raise self._service.nonsense(response)

    def drop_names(self, session_id: str) -> dict[str, str]:
        """The names that the logical graph gave the drops, by identifier."""
        graph = self._get(_path(session_id, "/graph"))
        if not isinstance(graph, dict):
            return {}
        named = {oid: spec.get("name") for oid, spec in graph.items() if isinstance(spec, dict)}
        return {oid: name for oid, name in named.items() if isinstance(name, str)}

    def sessions(self) -> list[str]:
        """The sessions that the manager has created and not deleted; no node is asked."""
        state = self._get("/api")
        return _strings(state.get("sessionIds") if isinstance(state, dict) else None)

    def nodes(self) -> list[str]:
        """The manager's nodes, ``host:http:events:rpc``; none of them is asked."""
        response = self._service.send("GET", "/api/nodes", seconds=self._read_seconds)
        nodes = self._value(response)
        if isinstance(nodes, list):
            return _strings(nodes)
        raise self._service.nonsense(response)

    def cancel(self, session_id: str) -> None:
        """Cancel a running session; the manager refuses it for any other but a cancelled one."""
        path = _path(session_id, "/cancel")
        self._expect(self._service.send("POST", path, seconds=self._read_seconds), _DONE)

    def delete(self, session_id: str) -> None:
        """Delete a session. Cancel a running one first: its processes would go on."""
        path = _path(session_id, "")
        self._expect(self._service.send("DELETE", path, seconds=self._read_seconds), _DONE)

    def drop_log(self, session_id: str, oid: str) -> str:
        """What a drop logged, as plain text of at most 2 kB, errors first; empty when nothing."""
        answer = self._get(_path(session_id, f"/graph/drop/{quote(oid, safe='')}"))
        lines = answer.get("logs") if isinstance(answer, dict) else None
        return _log_text(lines if isinstance(lines, list) else [])

    def _get(self, path: str) -> JsonValue:
        return self._value(self._service.send("GET", path, seconds=self._read_seconds))

    def _expect(self, response: httpx.Response, wanted: JsonValue) -> None:
        if self._value(response) != wanted:
            raise self._service.nonsense(response)

    def _value(self, response: httpx.Response) -> JsonValue:
        is_json, value = json_of(response)
        if is_json and response.status_code == 200:
            return value
        if is_json and isinstance(value, dict) and isinstance(value.get("type"), str):
            raise self._refusal(response, str(value["type"]), value.get("args"))
        raise self._service.nonsense(response)

    def _refusal(self, response: httpx.Response, kind: str, args: JsonValue) -> BeampipeError:
        nodes = _node_errors(args) if kind == "SubManagerException" else {}
        kinds = set(nodes.values()) or {kind}
        reason = "; ".join(f"{node}: {error}" for node, error in sorted(nodes.items()))
        reason = reason or f"{kind}: {_plain(args)}"
        call = f"{response.request.method} {response.request.url.path}"
        message = f"{call} at {self.url}: {reason}"
        details = {"url": self.url, "nodes": nodes, "types": sorted(kinds), "reason": reason}
        if kinds & _NODE_AWAY:
            return BackendUnavailableError(
                message,
                code=NODE_UNREACHABLE,
                hint="See that the node manager runs and that the island manager can reach it.",
                details=details,
            )
        if kinds == {"NoSessionException"}:
            hint = "The session was deleted, or the node manager was restarted."
            return BackendError(message, code=SESSION_ABSENT, hint=hint, details=details)
        if "SessionAlreadyExistsException" in kinds:
            hint = "Use a new session id for each attempt."
            return ConflictError(message, code="session_exists", hint=hint, details=details)
        if kinds == {"InvalidSessionState"}:
            hint = "The session's state does not allow this call."
            return BackendError(message, code="session_state", hint=hint, details=details)
        unknown = kind == "DaliugeException" and "not found" in reason
        return BackendError(
            message,
            code=ROOTS_UNKNOWN if unknown else "manager_refused",
            hint="The logs of the island manager and of the node manager have the traceback.",
            details=details,
        )


def _path(session_id: str, rest: str) -> str:
    return f"/api/sessions/{quote(session_id, safe='')}{rest}"


def _strings(value: JsonValue) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _node_errors(args: JsonValue) -> dict[str, str]:
    if not isinstance(args, dict):
        return {}
    return {
        node: str(error.get("type", "unknown")) if isinstance(error, dict) else "unknown"
        for node, error in args.items()
    }


def _plain(args: JsonValue) -> str:
    return "; ".join(str(one) for one in args) if isinstance(args, list) else str(args)


def _log_text(lines: Sequence[JsonValue]) -> str:
    """Errors and words for the user first, whole as far as they fit; then the rest, while there is room."""
    entries = [line for line in lines if isinstance(line, Mapping)]
    texts = {True: list[str](), False: list[str]()}
    for line in entries:
        level = str(line.get("Level", ""))
        if text := _message(level, str(line.get("Message", ""))):
            texts[level in _LOUD].append(text)
    shown = _cut("\n".join(texts[True]))
    room = _LOG_BYTES - len(shown.encode())
    for text in texts[False]:
        room -= len(text.encode()) + 1
        if room < 0:
            break
        shown = f"{shown}\n{text}" if shown else text
    return shown or _cut("\n".join(texts[False]))


def _message(level: str, message: str) -> str:
    text = _TAGS.sub("", message).strip()
    # The engine decodes its UTF-8 as Latin-1.
    with suppress(UnicodeError):
        text = text.encode("latin-1").decode()
    return f"{level}: {text}" if text else ""


def _cut(text: str) -> str:
    # The first lines name the error, the last lines of a long output its cause: keep both.
    raw = text.encode()
    if len(raw) <= _LOG_BYTES:
        return text
    mark = "\n[...]\n"
    head, tail = _LOG_BYTES // 4, _LOG_BYTES - _LOG_BYTES // 4 - len(mark)
    return raw[:head].decode(errors="ignore") + mark + raw[-tail:].decode(errors="ignore")
