"""Sessions on an island manager: states, drops in error, the roots of a graph, base URLs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from beampipe_dagster.backends.daliuge.manager import manager_url
from beampipe_dagster.backends.daliuge.physical import roots
from beampipe_dagster.backends.daliuge.states import SessionState, error_oids, session_state
from beampipe_dagster_tests.golden.runner import Case, Deviation

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue

_ENDED = {
    SessionState.FINISHED: "completed",
    SessionState.CANCELLED: "cancelled",
    SessionState.FAILED: "failed",
}
_LINKS = ("inputs", "streamingInputs", "producers")
_SOCKETS = frozenset({"Socket"})
_KNOWN = frozenset({"Application", "Socket", "app", "Data"})


def dim_state(value: JsonValue) -> JsonValue:
    """``{raw}`` -> the session's state, and what it alone would make of an execution."""
    state = session_state(_field(value, "raw"))
    return {"state": state.value, "status": _ENDED.get(state, "running")}


def dim_errors(value: JsonValue) -> JsonValue:
    """``{graph}`` -> the drops in error, in the graph's order."""
    graph = _field(value, "graph")
    wrong = set(error_oids(graph))
    return [oid for oid in graph if oid in wrong] if isinstance(graph, dict) else []


def graph_roots(value: JsonValue) -> JsonValue:
    """``{pg}`` -> where a deployment starts."""
    return [*roots(cast("list[dict[str, Any]]", _field(value, "pg")))]


def dim_base(value: JsonValue) -> JsonValue:
    """``{host, port, https}`` -> base URL."""
    given = cast("dict[str, Any]", value)
    return manager_url(given["host"], given["port"], https=given["https"])


def _field(value: JsonValue, name: str) -> JsonValue:
    return cast("dict[str, JsonValue]", value)[name]


def _applications_in_error(case: Case) -> list[str]:
    graph = _field(case.input, "graph") if case.fn == "dim_errors" else None
    if not isinstance(graph, dict):
        return []
    return [
        oid
        for oid, entry in graph.items()
        if isinstance(entry, dict) and entry.get("execStatus") == 3 and entry.get("status") is not None
    ]


def _with_applications(case: Case, got: JsonValue) -> bool:
    return isinstance(got, list) and set(got) == {
        *cast("list[str]", case.expected),
        *_applications_in_error(case),
    }


def _drops(case: Case) -> list[dict[str, Any]]:
    graph = _field(case.input, "pg") if case.fn == "roots" else None
    return [one for one in graph if isinstance(one, dict)] if isinstance(graph, list) else []


def _of_another_rule(case: Case) -> set[str]:
    """Drops about which the engine's rule for roots and the known one differ."""
    found: set[str] = set()
    for drop in _drops(case):
        oid = drop.get("oid")
        kind = drop.get("categoryType", drop.get("type"))
        if isinstance(oid, str) and any(drop.get(name) == [] for name in _LINKS):
            found.add(oid)
        if isinstance(oid, str) and kind not in _KNOWN:
            found.add(oid)
        if kind in _SOCKETS or kind not in _KNOWN:
            found.update(_targets(drop))
    return found


def _targets(drop: dict[str, Any]) -> Iterator[str]:
    for name in ("outputs", "consumers", "streamingConsumers"):
        for link in drop.get(name) or []:
            yield from [link] if isinstance(link, str) else link


def _differs_only_there(case: Case, got: JsonValue) -> bool:
    return set(cast("list[str]", got)) ^ set(cast("list[str]", case.expected)) <= _of_another_rule(case)


FUNCTIONS: dict[str, Any] = {
    "dim_state": dim_state,
    "dim_errors": dim_errors,
    "roots": graph_roots,
    "dim_base": dim_base,
}
DEVIATIONS = [
    Deviation(
        name="an application that ended in error",
        reason="DALiuGE tells an application's end in execStatus (AppDROPStates); 3 is an error like any other",
        applies=lambda case: bool(_applications_in_error(case)),
        agrees=_with_applications,
    ),
    Deviation(
        name="the engine's own roots",
        reason=(
            "dlg.common.get_roots: an empty list is no link, what a socket puts out waits for it, and a drop "
            "that is neither application nor data is started; any other choice waits for ever"
        ),
        applies=lambda case: bool(_of_another_rule(case)),
        agrees=_differs_only_there,
    ),
]
