from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.signature.diff import (
    FIELD_LIMIT,
    TEXT_LIMIT,
    DatasetRef,
    diff_payloads,
    lost_datasets,
)
from beampipe_dagster.signature.payload import sign
from beampipe_dagster_tests.signature.test_payload import flag_values, record_lists

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def payload(*records: JsonValue, flags: JsonValue = None) -> dict[str, JsonValue]:
    return sign(records, flags, include_flags=True).payload


def test_a_new_dataset_is_added_and_a_missing_one_removed() -> None:
    old = payload({"sbid": "1", "dataset_id": "a"}, {"sbid": "1", "dataset_id": "b"})
    new = payload({"sbid": "1", "dataset_id": "b"}, {"sbid": "2", "dataset_id": "a"})
    diff = diff_payloads(old, new)
    assert diff.added == (DatasetRef("2", "a"),)
    assert diff.removed == (DatasetRef("1", "a"),)
    assert diff.changed == ()


def test_a_changed_dataset_lists_its_fields_old_and_new() -> None:
    old = payload({"sbid": "1", "dataset_id": "a", "t_max": 1.0, "x": 1, "same": 0})
    new = payload({"sbid": "1", "dataset_id": "a", "t_max": 2.0, "y": None, "same": 0})
    (change,) = diff_payloads(old, new).changed
    assert change.as_dict() == {
        "sbid": "1",
        "dataset": "a",
        "fields": {
            "t_max": {"old": 1.0, "new": 2.0},
            "x": {"old": 1, "new": None},
            "y": {"old": None, "new": None},
        },
    }


def test_a_dataset_without_an_id_is_known_by_its_visibility_file() -> None:
    old = payload({"sbid": "1", "visibility_filename": "a.ms", "n": 1})
    new = payload({"sbid": "1", "visibility_filename": "a.ms", "n": 2})
    (change,) = diff_payloads(old, new).changed
    assert change.ref == DatasetRef("1", "a.ms")
    assert change.fields == {"n": (1, 2)}


def test_flags_alone_can_be_what_changed() -> None:
    record: JsonValue = {"sbid": "1", "dataset_id": "a"}
    diff = diff_payloads(
        payload(record, flags={"complete": False}), payload(record, flags={"complete": True})
    )
    assert diff.counts == {"added": 0, "removed": 0, "changed": 0}
    assert not diff.empty
    (change,) = diff.flags
    assert (change.sbid, change.fields) == ("1", {"complete": (False, True)})
    assert diff.as_dict()["flags"] == [{"sbid": "1", "fields": {"complete": {"old": False, "new": True}}}]


def test_flags_that_come_with_a_scheduling_block_are_not_told_beside_it() -> None:
    old = payload({"sbid": "1", "dataset_id": "a"}, flags={"complete": True})
    new = payload(
        {"sbid": "1", "dataset_id": "a"}, {"sbid": "2", "dataset_id": "b"}, flags={"complete": True}
    )
    diff = diff_payloads(old, new)
    assert (diff.counts["added"], diff.flags_count) == (1, 0)


def test_a_dataset_may_be_called_like_the_flags() -> None:
    record: dict[str, JsonValue] = {"sbid": "1", "dataset_id": "discovery_flags", "n": 1}
    diff = diff_payloads(payload(record, flags={"a": 1}), payload({**record, "n": 2}, flags={"a": 2}))
    assert diff.counts["changed"] == diff.flags_count == 1


def test_many_changed_flags_are_bounded_and_said_so() -> None:
    blocks: list[JsonValue] = [{"sbid": str(n), "dataset_id": "a"} for n in range(5)]
    diff = diff_payloads(payload(*blocks, flags={"a": 1}), payload(*blocks, flags={"a": 2}), limit=2)
    assert (len(diff.flags), diff.flags_count, diff.truncated) == (2, 5, True)


def test_a_dataset_is_lost_when_fewer_of_its_name_are_left() -> None:
    twice: list[JsonValue] = [{"sbid": "1", "dataset_id": "a", "n": n} for n in (1, 2)]
    changed: JsonValue = {"sbid": "1", "dataset_id": "a", "n": 3}
    assert lost_datasets(payload(*twice), payload(changed)) == [DatasetRef("1", "a")]
    assert lost_datasets(payload(changed), payload(*twice)) == []
    assert lost_datasets(payload(*twice), {}) == [DatasetRef("1", "a")] * 2


@given(old=record_lists, new=record_lists)
def test_as_many_datasets_are_lost_as_are_counted_as_removed(
    old: list[JsonValue], new: list[JsonValue]
) -> None:
    before, after = payload(*old), payload(*new)
    assert len(lost_datasets(before, after)) == diff_payloads(before, after).counts["removed"]


def test_an_integer_and_the_equal_float_are_a_change() -> None:
    old, new = (payload({"sbid": "1", "dataset_id": "a", "n": n}) for n in (1, 1.0))
    assert diff_payloads(old, new).counts["changed"] == 1


def test_a_diff_is_bounded_and_says_so() -> None:
    many: list[JsonValue] = [{"sbid": "1", "dataset_id": f"{n:04}"} for n in range(200)]
    diff = diff_payloads({}, payload(*many), limit=3)
    assert [ref.dataset for ref in diff.added] == ["0000", "0001", "0002"]
    assert diff.counts == {"added": 200, "removed": 0, "changed": 0}
    assert diff.truncated


def test_long_values_and_many_fields_are_cut() -> None:
    base: dict[str, JsonValue] = {"sbid": "1", "dataset_id": "a"}
    wide: dict[str, JsonValue] = {f"f{n:02}": ["x" * 500] for n in range(FIELD_LIMIT + 5)}
    (change,) = diff_payloads(payload({**base}), payload({**base, **wide})).changed
    assert change.more_fields == 5
    assert {len(str(new)) for _, new in change.fields.values()} == {TEXT_LIMIT}


def test_datasets_with_one_identity_are_paired() -> None:
    twin: dict[str, JsonValue] = {"sbid": "1", "dataset_id": "a"}
    diff = diff_payloads(
        payload({**twin, "n": 1}, {**twin, "n": 2}, {**twin, "n": 3}),
        payload({**twin, "n": 2}, {**twin, "n": 4}),
    )
    assert diff.counts == {"added": 0, "removed": 1, "changed": 1}


@given(records=record_lists, flags=flag_values)
def test_a_payload_does_not_differ_from_itself(records: list[JsonValue], flags: dict[str, JsonValue]) -> None:
    diff = diff_payloads(payload(*records, flags=flags), payload(*records, flags=flags))
    assert diff.empty
    assert not diff.truncated


@given(old=record_lists, new=record_lists, limit=st.integers(0, 3))
def test_payloads_that_sign_differently_differ(
    old: list[JsonValue], new: list[JsonValue], limit: int
) -> None:
    before, after = sign(old), sign(new)
    diff = diff_payloads(before.payload, after.payload, limit=limit)
    assert diff.empty == (before.digest == after.digest)
    assert max(len(diff.added), len(diff.removed), len(diff.changed)) <= limit
    json.dumps(diff.as_dict(), allow_nan=False)


@given(old=record_lists, new=record_lists)
def test_a_diff_turned_round_swaps_added_and_removed(old: list[JsonValue], new: list[JsonValue]) -> None:
    there = diff_payloads(payload(*old), payload(*new), limit=100)
    back = diff_payloads(payload(*new), payload(*old), limit=100)
    assert (there.added, there.removed) == (back.removed, back.added)
