"""Ports that are taken, and by whom."""

from __future__ import annotations

import os
import socket

import pytest

from beampipe_dagster.errors import ConfigError
from beampipe_dagster.sandbox.ports import check_ports, free_port, holder


def test_free_ports_are_fine_and_stay_free() -> None:
    port = free_port()
    check_ports({"web server": port})
    check_ports({"web server": port})


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_named_with_its_use_its_flag_and_its_holder(bound: str) -> None:
    with socket.create_server((bound, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            check_ports({"web server": port}, flags={"web server": "--port"})
    error = caught.value
    assert error.code == "port_taken"
    assert f"ort {port} of 127.0.0.1 (web server) is taken by pid {os.getpid()} (" in error.message
    assert "--port changes it" in error.message
    assert error.details == {"ports": [port]}


def test_all_taken_ports_are_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [one.getsockname()[1], two.getsockname()[1]]
        with pytest.raises(ConfigError) as caught:
            check_ports({"one": ports[0], "free": free_port(), "two": ports[1]})
    assert caught.value.details == {"ports": ports}


def test_a_port_that_is_wanted_twice_is_refused() -> None:
    port = free_port()
    with pytest.raises(ConfigError, match="for metrics and for events") as caught:
        check_ports({"metrics": port, "events": port})
    assert caught.value.code == "port_twice"


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_ports({"metrics": port})
    assert caught.value.code == "port_invalid"


def test_nobody_holds_a_free_port() -> None:
    assert holder(free_port()) is None


def test_a_port_that_was_just_closed_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
        socket.create_connection(("127.0.0.1", port)).close()
    check_ports({"web server": port})
