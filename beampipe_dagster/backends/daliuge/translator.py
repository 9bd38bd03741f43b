"""Client of DALiuGE's translator: from a logical graph to a partitioned graph template.

Translating has no side effects, so that every failure of the service is one to repeat later. What a
graph does wrong the translator only says with an unexplained 500; another of its calls, made for the
editor, gives the traceback.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from beampipe_dagster.backends.daliuge._http import Service, json_of
from beampipe_dagster.backends.daliuge.physical import Drop
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import BackendUnavailableError, BeampipeError, ConfigError, GraphError

_PROBE_SECONDS = 5.0
_TRACEBACK_LINES = 12
_PLAIN_500 = "Internal Server Error"
_LATER = frozenset({408, 429, 502, 503, 504})


class Translator:
    """A translator at a URL.

    Parameters
    ----------
    url
        Base URL, for example ``http://tm.example.org:8084``.
    timeout_seconds
        Limit for each wait in a translation: 15 s for 5,000 drops with metis on a slow machine.
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
    """

    def __init__(
        self,
        *,
        url: str,
        timeout_seconds: float = 120.0,
        verify: bool | ssl.SSLContext = True,
        client: httpx.Client | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._service = Service(
            name="translator", url=url, connect_seconds=5.0, verify=verify, client=client, headers=headers
        )
        self._seconds = timeout_seconds

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return self._service.url

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def available(self) -> bool:
        """Whether a translator answers within 5 s."""
        try:
            response = self._service.send("GET", "/api/submission_method", seconds=_PROBE_SECONDS)
        except BackendUnavailableError:
            return False
        value = json_of(response)[1]
        return response.status_code == 200 and isinstance(value, dict) and "methods" in value

    def translate(
        self,
        logical_graph: Mapping[str, Any],
        *,
        algorithm: str,
        num_partitions: int,
        num_islands: int,
        oid_prefix: str,
    ) -> list[Drop]:
        """Unroll a logical graph and partition it.

        Parameters
        ----------
        logical_graph
            The graph as the EAGLE editor saves it.
        algorithm
            ``metis``, ``mysarkar``, ``min_num_parts``, ...; ``metis`` keeps to ``num_partitions``.
        num_partitions
            How many nodes it is for, at least 1.
        num_islands
            How many island managers; taken as 1 when less.
        oid_prefix
            What every drop's identifier begins with; the same prefix gives the same graph.

        Returns
        -------
        list of dict
            The drops, their ``node`` and ``island`` still places like ``#0``.

        Raises
        ------
        GraphError
            ``translation_failed``: the translator fails over this graph; ``details["traceback"]``
            has the last lines of its traceback when it gives one. ``empty_graph``: no drop at all.
        ConfigError
            ``translation_refused``: the translator does not accept a parameter.
        BackendUnavailableError
            It is away, too slow, or answers nonsense.
        """
        form: dict[str, str | int] = {
            "lg_content": json.dumps(logical_graph),
            "algorithm": algorithm,
            "num_partitions": num_partitions,
            "num_islands": max(1, num_islands),
            "oid_prefix": oid_prefix,
        }
        response = self._service.send("POST", "/unroll_and_partition", seconds=self._seconds, form=form)
        is_json, value = json_of(response)
        if response.status_code == 200 and isinstance(value, list):
            return self._drops(value, response)
        if is_json and 400 <= response.status_code < 500 and response.status_code not in _LATER:
            raise _refused(response, value, self.url)
        if response.status_code == 500 and (is_json or response.text.strip() == _PLAIN_500):
            raise self._failed(logical_graph, form, value)
        raise self._service.nonsense(response)

    def traceback_of(
        self,
        logical_graph: Mapping[str, Any],
        *,
        algorithm: str = "metis",
        num_partitions: int = 1,
        num_islands: int = 1,
    ) -> str | None:
        """The translator's traceback for a graph that it fails over.

        Returns
        -------
        str or None
            None when it translates the graph after all, or gives no reason.

        Raises
        ------
        BackendUnavailableError
            It is away or too slow.
        """
        form: dict[str, str | int] = {
            "lg_name": "beampipe.graph",
            "json_data": json.dumps(logical_graph),
            "algo": algorithm,
            "num_par": num_partitions,
            "num_islands": max(1, num_islands),
        }
        response = self._service.send("POST", "/gen_pgt", seconds=self._seconds, form=form)
        value = json_of(response)[1]
        detail = value.get("detail") if isinstance(value, dict) else None
        return detail if response.status_code == 500 and isinstance(detail, str) else None

    def _drops(self, value: list[JsonValue], response: httpx.Response) -> list[Drop]:
        # The last element holds what reproducibility needs, or nothing: it is no drop.
        drops = [drop for drop in value if isinstance(drop, dict) and "oid" in drop]
        if len(drops) < len(value) - 1:
            raise self._service.nonsense(response)
        if not drops:
            raise GraphError(
                "the logical graph has no drop after translation",
                code="empty_graph",
                hint="See that the graph has nodes and that no active configuration removes them.",
            )
        return drops

    def _failed(
        self, logical_graph: Mapping[str, Any], form: Mapping[str, str | int], answer: JsonValue
    ) -> BeampipeError:
        trace = self.traceback_of(
            logical_graph,
            algorithm=str(form["algorithm"]),
            num_partitions=int(form["num_partitions"]),
            num_islands=int(form["num_islands"]),
        )
        detail = answer.get("detail") if isinstance(answer, dict) else None
        text = trace or (detail if isinstance(detail, str) else "")
        lines = [line for line in text.splitlines() if line.strip()][-_TRACEBACK_LINES:]
        reason = lines[-1].strip() if lines else "it gives no reason; see its standard output"
        return GraphError(
            f"the translator at {self.url} fails over this graph: {reason}",
            code="translation_failed",
            hint="Open the graph in EAGLE: look for scatters without copies, links to nodes that "
            "are gone and more islands than partitions.",
            details={"url": self.url, "traceback": lines},
        )


def _refused(response: httpx.Response, value: JsonValue, url: str) -> BeampipeError:
    detail = value.get("detail") if isinstance(value, dict) else None
    details: dict[str, Any] = {"url": url, "status": response.status_code, "answer": detail}
    if isinstance(detail, str) and "maximum size" in detail:
        return ConfigError(
            f"the translator at {url} does not take a graph of this size: {detail}",
            code="translation_refused",
            hint="Its web framework limits form fields: install starlette 0.52.1 beside it.",
            details=details,
        )
    reason = _complaints(detail)
    if response.status_code == 400:
        return GraphError(
            f"the translator at {url} cannot read the graph: {reason}",
            code="translation_failed",
            hint="Save the graph with EAGLE again.",
            details=details,
        )
    return ConfigError(
        f"the translator at {url} refuses a parameter: {reason}",
        code="translation_refused",
        hint="See the deployment profile's translation section and the translator's URL.",
        details=details,
    )


def _complaints(detail: JsonValue) -> str:
    if not isinstance(detail, list):
        return str(detail)
    return "; ".join(
        f"{'.'.join(map(str, place)) if isinstance(place := one.get('loc'), list) else '?'}: {one.get('msg')}"
        for one in detail
        if isinstance(one, dict)
    )
