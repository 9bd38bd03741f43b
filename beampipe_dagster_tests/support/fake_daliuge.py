"""A translator and an island manager with one node, over real sockets, with planned faults.

It keeps sessions as DALiuGE 6.6 does and answers as that does, oddities included: errors of status
555 that call themselves HTML, 200 for a session that nobody knows, sessions without drops that
finish at once. Nothing is executed: a test says how a session goes.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote

PRISTINE, BUILDING, DEPLOYING, RUNNING, FINISHED, CANCELLED, FAILED = range(7)
SUCCESS = {"Status": "Success"}
NODE = "127.0.0.1:8000:5555:6666"
HTML_500 = "<!DOCTYPE HTML><html><body><h1>Error: 500 Internal Server Error</h1></body></html>"

DEPLOY_FAULTS = ("html", "done_html", "cut", "done_cut", "node_down", "done_555")
"""Kinds of faults that leave open, seen from outside, whether the call was done."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call.

    ``kind``: ``html`` (500 before it is done), ``done_html`` (500 after), ``cut`` and ``done_cut``
    (the connection ends without an answer), ``slow`` (done, after ``seconds``), ``node_down`` (555,
    not done), ``done_555`` (555 after it is done), ``answer`` (``status`` and ``body``, not done).
    """

    kind: str
    seconds: float = 0.0
    status: int = 500
    body: str = ""


@dataclass
class FaultPlan:
    """Which calls go wrong: those queued by name, then each with a seeded probability."""

    seed: int = 0
    rate: float = 0.0
    kinds: tuple[str, ...] = DEPLOY_FAULTS
    queued: dict[str, list[Fault | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def on(self, call: str, *faults: Fault | None) -> None:
        """The next calls of this name get these faults, None for none."""
        self.queued.setdefault(call, []).extend(faults)

    def next(self, call: str) -> Fault | None:
        """The fault for this call."""
        if self.queued.get(call):
            return self.queued[call].pop(0)
        if self._random.random() < self.rate:
            # A graph that is refused when it is handed over is a verdict about the graph, and no mishap.
            kinds = [kind for kind in self.kinds if (call, kind) != ("append", "done_555")]
            return Fault(self._random.choice(kinds))
        return None


@dataclass
class FakeSession:
    """A session as the node has it."""

    state: int = PRISTINE
    drops: dict[str, dict[str, Any]] = field(default_factory=dict)
    triggered: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    script: list[int] = field(default_factory=list)
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


def node_error(kind: str) -> RefusedError:
    """The island manager's way to say what its node said."""
    inner = {NODE: {"type": kind, "args": "dummy"}}
    return RefusedError(555, json.dumps({"type": "SubManagerException", "args": inner}))


class FakeDaliuge:
    """The two services; use it as a context manager.

    Attributes
    ----------
    plan
        Faults to come.
    calls
        Names of the calls that arrived, in order.
    sessions
        What the node has.
    ever_started
        Sessions in which a drop was started, also those that are gone.
    """

    def __init__(self, *, plan: FaultPlan | None = None) -> None:
        self.plan = plan or FaultPlan()
        self.calls: list[str] = []
        self.sessions: dict[str, FakeSession] = {}
        self.listed: list[str] = []
        self.graph: set[str] = set()
        self.ever_started: set[str] = set()
        self.lock = threading.RLock()
        self.manager = _Server(self, _MANAGER)
        self.translator = _Server(self, _TRANSLATOR)

    def __enter__(self) -> Self:
        self.manager.start()
        self.translator.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.stop()
        self.translator.stop()

    @property
    def manager_url(self) -> str:
        return f"http://127.0.0.1:{self.manager.port}"

    @property
    def translator_url(self) -> str:
        return f"http://127.0.0.1:{self.translator.port}"

    def delay(self) -> None:
        """How long every call takes at least; nothing by default."""

    def go(self, session_id: str, *states: int) -> None:
        """The next status answers; the last one stays."""
        self.sessions[session_id].script = list(states)

    def fail(self, session_id: str, errors: dict[str, str]) -> None:
        """These drops fail with these logs; the session is failed."""
        session = self.sessions[session_id]
        session.errors.update(errors)
        session.state, session.script = FAILED, []

    def restart_node(self) -> None:
        """The node manager forgets everything; the island manager still lists the sessions."""
        self.sessions.clear()

    def restart_manager(self) -> None:
        """The island manager forgets everything; the node goes on."""
        self.graph.clear()
        self.listed.clear()

    # ------------------------------------------------------------ the island manager

    def known(self, session_id: str) -> FakeSession:
        if session_id not in self.sessions:
            raise node_error("NoSessionException")
        return self.sessions[session_id]

    def create(self, _: str, body: bytes) -> object:
        session_id = json.loads(body)["sessionId"]
        if session_id in self.sessions:
            raise node_error("SessionAlreadyExistsException")
        self.sessions[session_id] = FakeSession()
        self.listed.append(session_id)
        return {"sessionId": session_id}

    def append(self, session_id: str, body: bytes) -> object:
        drops = json.loads(body)
        for drop in drops:
            if drop.get("node") != NODE:
                text = f"Drop {drop.get('oid')}'s node {drop.get('node')} does not belong to this DM"
                error = {"type": "InvalidGraphException", "args": [text]}
                raise RefusedError(400, json.dumps(error))
            self.graph.add(drop["oid"])
        session = self.known(session_id)
        session.state = BUILDING
        wrong = any("no_such" in str(drop.get("dropclass")) for drop in drops)
        if wrong or any(drop["oid"] in session.drops for drop in drops):
            raise node_error("ErrorManagerCaughtException")
        session.drops.update({drop["oid"]: drop for drop in drops})
        return SUCCESS

    def deploy(self, session_id: str, body: bytes) -> object:
        session = self.known(session_id)
        if session.state not in {PRISTINE, BUILDING}:
            raise node_error("ErrorManagerCaughtException")
        session.state = RUNNING if session.drops else FINISHED
        roots = parse_qs(body.decode()).get("completed", [""])[0]
        names = [name for name in roots.split(",") if name]
        unknown = set(names) - self.graph
        if unknown:
            text = f"UIDs for completed drops not found: {unknown}"
            raise RefusedError(555, json.dumps({"type": "DaliugeException", "args": [text]}))
        session.triggered = names
        if session.drops and names:
            self.ever_started.add(session_id)
        return SUCCESS

    def status(self, session_id: str, _: bytes) -> object:
        session = self.sessions.get(session_id)
        if session is None:
            return {NODE: SUCCESS}
        return {NODE: self._now(session)}

    def node_sessions(self, node: str, _: bytes) -> object:
        if node != NODE:
            raise RefusedError(500, HTML_500)
        return [
            {"sessionId": one, "status": self._now(session), "size": len(session.drops)}
            for one, session in self.sessions.items()
        ]

    def _now(self, session: FakeSession) -> int:
        if session.script:
            session.state = session.script.pop(0)
        return session.state

    def graph_status(self, session_id: str, _: bytes) -> object:
        session = self.known(session_id)
        if session.state < RUNNING:
            raise node_error("InvalidSessionState")
        return {oid: self._entry(session, oid) for oid in session.drops}

    def _entry(self, session: FakeSession, oid: str) -> dict[str, int]:
        if oid in session.statuses:
            return session.statuses[oid]
        app = session.drops[oid].get("categoryType") == "Application"
        if oid in session.errors:
            return {"execStatus": 3, "status": 3} if app else {"status": 3}
        drop, run = {FINISHED: (2, 2), CANCELLED: (6, 4), FAILED: (2, 2)}.get(session.state, (0, 1))
        return {"execStatus": run, "status": drop} if app else {"status": drop}

    def size(self, session_id: str, _: bytes) -> object:
        session = self.sessions.get(session_id)
        return len(session.drops) if session else 0

    def session_graph(self, session_id: str, _: bytes) -> object:
        return self.known(session_id).drops

    def cancel(self, session_id: str, _: bytes) -> object:
        session = self.known(session_id)
        if session.state not in {RUNNING, CANCELLED}:
            raise node_error("ErrorManagerCaughtException")
        session.state, session.script = CANCELLED, []
        return SUCCESS

    def delete(self, session_id: str, _: bytes) -> object:
        self.known(session_id)
        del self.sessions[session_id]
        if session_id not in self.listed:
            raise RefusedError(500, HTML_500)
        self.listed.remove(session_id)
        return SUCCESS

    def drop(self, session_and_oid: str, _: bytes) -> object:
        session_id, oid = session_and_oid.split("/", 1)
        session = self.sessions.get(session_id)
        if session is None:
            raise RefusedError(500, HTML_500)
        text = session.errors.get(oid)
        logs = [{"Level": "ERROR", "Message": f"<pre>{text}\n</pre>"}] if text else []
        return {"session": session_id, "status": session.state, "oid": oid, "logs": logs}

    def nodes(self, _: str, __: bytes) -> object:
        return [NODE]

    def state(self, _: str, __: bytes) -> object:
        return {"hosts": [NODE], "sessionIds": list(self.listed)}

    # ------------------------------------------------------------ the translator

    def methods(self, _: str, __: bytes) -> object:
        return {"methods": []}

    def translate(self, _: str, body: bytes) -> object:
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        if form["algorithm"] not in {"none", "metis", "mysarkar", "min_num_parts", "pso"}:
            wrong = {"loc": ["body", "algorithm"], "msg": "Input should be 'none' or 'metis'"}
            raise RefusedError(422, json.dumps({"detail": [wrong]}))
        try:
            drops = unroll(json.loads(form["lg_content"]), form["oid_prefix"])
        except (KeyError, ValueError) as error:
            raise RefusedError(500, "Internal Server Error") from error
        return [*drops, {}]

    def explain(self, _: str, body: bytes) -> object:
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        try:
            unroll(json.loads(form["json_data"]), "x")
        except (KeyError, ValueError) as error:
            trace = f"Traceback (most recent call last):\n{type(error).__name__}: {error}\n"
            detail = f"Graph partition exception {form['lg_name']}: {trace}"
            raise RefusedError(500, json.dumps({"detail": detail})) from error
        raise RefusedError(200, "<html><title>Translator</title></html>")


def unroll(graph: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """One drop a node: enough of a translation for graphs without constructs."""
    nodes = {node["id"]: node for node in graph["nodeDataArray"]}
    drops: dict[str, dict[str, Any]] = {}
    for key, node in nodes.items():
        if node["categoryType"] == "Construct":
            copies = next(one for one in node["fields"] if one["name"] == "num_of_copies")
            range(0, 12, copies["value"])
        values = {one["name"]: one["value"] for one in node["fields"]}
        drops[key] = {
            "oid": f"{prefix}_{key}_0",
            "name": node["name"],
            "categoryType": node["categoryType"],
            "category": node["category"],
            "dropclass": values.get("dropclass"),
            "node": "#0",
            "island": "#0",
        }
    for link in graph["linkDataArray"]:
        start, end = drops[link["from"]], drops[link["to"]]
        app_first = start["categoryType"] == "Application"
        out, back = ("outputs", "producers") if app_first else ("consumers", "inputs")
        start.setdefault(out, []).append({end["oid"]: "io"})
        end.setdefault(back, []).append({start["oid"]: "io"})
    return list(drops.values())


Route = tuple[str, re.Pattern[str], str]
_SESSION = "/api/sessions/([^/]+)"
_MANAGER: tuple[Route, ...] = (
    ("POST", re.compile("/api/sessions()"), "create"),
    ("POST", re.compile(f"{_SESSION}/graph/append"), "append"),
    ("POST", re.compile(f"{_SESSION}/deploy"), "deploy"),
    ("POST", re.compile(f"{_SESSION}/cancel"), "cancel"),
    ("GET", re.compile(f"{_SESSION}/status"), "status"),
    ("GET", re.compile(f"{_SESSION}/graph/status"), "graph_status"),
    ("GET", re.compile(f"{_SESSION}/graph/size"), "size"),
    ("GET", re.compile("/api/sessions/([^/]+)/graph"), "session_graph"),
    ("GET", re.compile("/api/sessions/([^/]+/)graph/drop/([^/]+)"), "drop"),
    ("DELETE", re.compile(_SESSION), "delete"),
    ("GET", re.compile("/api/nodes()"), "nodes"),
    ("GET", re.compile("/api/node/([^/]+)/sessions"), "node_sessions"),
    ("GET", re.compile("/api()"), "state"),
)
_TRANSLATOR: tuple[Route, ...] = (
    ("POST", re.compile("/unroll_and_partition()"), "translate"),
    ("POST", re.compile("/gen_pgt()"), "explain"),
    ("GET", re.compile("/api/submission_method()"), "methods"),
)


class _HttpServer(ThreadingHTTPServer):
    def __init__(self, port: int, fake: FakeDaliuge, routes: tuple[Route, ...]) -> None:
        self.fake = fake
        self.routes = routes
        super().__init__(("127.0.0.1", port), _Handler)


class _Server:
    """One service on a port that it keeps when it is started again."""

    def __init__(self, fake: FakeDaliuge, routes: tuple[Route, ...]) -> None:
        self._fake = fake
        self._routes = routes
        self._running: tuple[_HttpServer, threading.Thread] | None = None
        self.port = 0

    def start(self) -> None:
        server = _HttpServer(self.port, self._fake, self._routes)
        self.port = int(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        self._running = (server, thread)
        thread.start()

    def stop(self) -> None:
        if self._running:
            server, thread = self._running
            server.shutdown()
            server.server_close()
            thread.join()
        self._running = None


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
        """Be quiet."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, name in self.server.routes:
            match = pattern.fullmatch(self.path)
            if match and method == self.command:
                argument = "".join(unquote(part) for part in match.groups())
                self.call(name, argument, body)
                return
        self.reply(404, "<html>Not found</html>")

    do_GET = do_POST = do_DELETE = answer  # noqa: N815  # the base's names

    def call(self, name: str, argument: str, body: bytes) -> None:
        fake = self.server.fake
        fake.delay()
        with fake.lock:
            fake.calls.append(name)
            fault = fake.plan.next(name)
        if fault is None:
            self.reply(*self.done(name, argument, body))
            return
        time.sleep(fault.seconds)
        done = (0, "")
        if fault.kind == "slow" or fault.kind.startswith("done"):
            done = self.done(name, argument, body)
        answers = {
            "slow": done,
            "html": (500, HTML_500),
            "done_html": (500, HTML_500),
            "node_down": (555, node_error("SubManagerException").body),
            "done_555": (555, node_error("ErrorManagerCaughtException").body),
            "answer": (fault.status, fault.body),
        }
        if fault.kind in answers:  # any other ends the connection without an answer
            self.reply(*answers[fault.kind])

    def done(self, name: str, argument: str, body: bytes) -> tuple[int, str]:
        fake = self.server.fake
        try:
            with fake.lock:
                value = getattr(fake, name)(argument, body)
        except RefusedError as refusal:
            return refusal.status, refusal.body
        return 200, json.dumps(value)

    def reply(self, status: int, text: str) -> None:
        raw = text.encode()
        is_json = status == 200 and not text.startswith("<")
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if is_json else "text/html")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        with suppress(ConnectionError):  # a client that did not wait
            self.wfile.write(raw)


@contextmanager
def fake_daliuge(*, plan: FaultPlan | None = None) -> Iterator[FakeDaliuge]:
    """Both services, running."""
    with FakeDaliuge(plan=plan) as fake:
        yield fake
