"""What the tests of the REST backend share."""

from __future__ import annotations

from beampipe_dagster.backends.base import Backend
from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.physical import Drop, map_to_nodes
from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.clock import ManualClock
from beampipe_dagster_tests.support import graphs
from beampipe_dagster_tests.support.fake_daliuge import NODE, FakeDaliuge, unroll

SID = "BeampipeExecution-1.a"


def backend_for(fake: FakeDaliuge, clock: ManualClock) -> RestBackend:
    manager = IslandManager(url=fake.manager_url, read_seconds=0.4, write_seconds=0.4)
    return RestBackend(manager=manager, clock=clock)


def graph(sid: str = SID, graph: graphs.Graph | None = None) -> list[Drop]:
    template = unroll(graph or graphs.bash_chain("true", "true"), sid)
    return map_to_nodes(template, nodes=[NODE], island="127.0.0.1:8001")


def oids(drops: list[Drop]) -> frozenset[str]:
    return frozenset(drop["oid"] for drop in drops)


def nothing() -> None:
    """There is no lease to renew."""


def start(backend: Backend, sid: str = SID) -> list[Drop]:
    drops = graph(sid)
    backend.submit(sid, drops, before_deploy=nothing)
    return drops
