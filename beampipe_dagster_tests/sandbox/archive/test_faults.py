from __future__ import annotations

import json
from pathlib import Path

import pytest

from beampipe_dagster.errors import ConfigError, InputError, NotFoundError
from beampipe_dagster.sandbox.archive.faults import (
    BUSY_TEXT,
    NO_FAULT,
    Fault,
    FaultSwitches,
    parse_fault,
)


@pytest.fixture
def switches(tmp_path: Path) -> FaultSwitches:
    return FaultSwitches(tmp_path / "faults.json")


def test_a_restart_keeps_the_switches(tmp_path: Path, switches: FaultSwitches) -> None:
    fault = switches.set("casda", {"busy": True, "count": 2, "latency": 0.5})
    switches.take("casda")
    again = FaultSwitches(tmp_path / "faults.json")
    assert fault.busy == BUSY_TEXT
    assert again.get("casda") == Fault(busy=BUSY_TEXT, count=1, latency=0.5)
    assert again.get("vizier") == NO_FAULT


def test_a_counted_fault_turns_itself_off(switches: FaultSwitches) -> None:
    switches.set("casda", {"down": True, "count": 2})
    assert [switches.take("casda").down for _ in range(4)] == [True, True, False, False]
    assert switches.as_dict() == {"casda": {}, "vizier": {}}


def test_setting_replaces_and_clearing_is_by_archive(switches: FaultSwitches) -> None:
    switches.set("casda", {"down": True})
    switches.set("casda", {"empty": True})
    switches.set("vizier", {"html": True})
    assert switches.get("casda") == Fault(empty=True)
    switches.clear("casda")
    assert switches.as_dict() == {"casda": {}, "vizier": {"html": True}}
    switches.clear()
    assert switches.get("vizier") == NO_FAULT


def test_an_error_rate_hits_its_share_and_the_same_ones_each_time(switches: FaultSwitches) -> None:
    def run() -> list[int | None]:
        switches.set("casda", {"error_rate": 0.3, "seed": 7})
        return [switches.take("casda").status for _ in range(400)]

    first = run()
    assert set(first) == {None, 500}
    assert 0.2 < first.count(500) / 400 < 0.4
    assert run() == first


def test_an_error_rate_decides_over_the_other_switches(switches: FaultSwitches) -> None:
    switches.set("casda", {"error_rate": 0.5, "empty": True, "latency": 0.1})
    taken = [switches.take("casda") for _ in range(50)]
    assert {(f.empty, f.status, f.latency) for f in taken} == {(True, None, 0.1), (False, None, 0.1)}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"latency": -1}, "latency"),
        ({"latency": float("nan")}, "latency"),
        ({"latency": 301}, "latency"),
        ({"error_rate": 1.5}, "error_rate"),
        ({"status": 200}, "status"),
        ({"status": "503"}, "status"),
        ({"overflow": -1}, "overflow"),
        ({"count": 0}, "count"),
        ({"count": True}, "count"),
        ({"down": 1}, "down"),
        ({"busy": ""}, "busy"),
        ({"busy": 7}, "busy"),
        ({"dwon": True}, "dwon"),
        ([], "object"),
    ],
)
def test_a_wrong_switch_is_named(value: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_fault(value)
    assert caught.value.code == "invalid_fault"


def test_an_unknown_archive_is_refused(switches: FaultSwitches) -> None:
    with pytest.raises(NotFoundError, match="simbad"):
        switches.set("simbad", {})


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"casda": {"latency": "x"}})])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "faults.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"faults\.json") as caught:
        FaultSwitches(path)
    assert caught.value.code == "invalid_fault_file"
