from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.errors import DataError, InputError, Retry
from beampipe_dagster.signature.payload import (
    NO_DATASETS_DIGEST,
    NO_DATASETS_PAYLOAD,
    combined_signature,
    group_by_sbid,
    partition_key,
    sign,
    sign_stored,
    signature_of_payload,
    validate_records,
)

scalars: st.SearchStrategy[JsonValue] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
field_names = st.sampled_from(["access_url", "filesize", "t_max", "scan_id", "é", "nested"])
values: st.SearchStrategy[JsonValue] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(field_names, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def record_values(draw: st.DrawFn) -> dict[str, JsonValue]:
    record = draw(st.dictionaries(field_names, values, max_size=4))
    record["sbid"] = draw(st.sampled_from(["1", "2", "10", 1, True]))
    record["dataset_id"] = draw(st.sampled_from(["a", "b", "", None]))
    return record


record_lists = st.lists(record_values(), max_size=6)
flag_values = st.dictionaries(field_names, values, max_size=3)
exclusions = st.sets(field_names)


def keys_at_any_depth(value: JsonValue) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys_at_any_depth(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(keys_at_any_depth(item) for item in value))
    return set()


def reordered(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [reordered(item) for item in value]
    return value


def test_a_signature_is_the_published_one() -> None:
    record: JsonValue = {
        "sbid": "123",
        "dataset_id": "dataset-1",
        "visibility_filename": "a.ms",
        "checksum": "abc",
    }
    signature = sign([record], {"ra_dec_vsys_complete": True}, include_flags=True)
    assert signature.digest == "4dcd5f3236aa5a13238e7df0a8d712e3026180576154104d2bf088ea3fa3ee85"


def test_nothing_found_has_its_own_signature() -> None:
    assert signature_of_payload(NO_DATASETS_PAYLOAD) == NO_DATASETS_DIGEST
    assert sign_stored(NO_DATASETS_PAYLOAD).digest == NO_DATASETS_DIGEST
    assert sign([]).digest != NO_DATASETS_DIGEST


@given(records=record_lists, exclude=exclusions, data=st.data())
def test_the_order_of_rows_does_not_matter(
    records: list[JsonValue], exclude: set[str], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(records))
    before, after = sign(records, exclude_fields=exclude), sign(shuffled, exclude_fields=exclude)
    assert canonical_json(after.payload) == canonical_json(before.payload)
    assert after.digest == before.digest


@given(records=record_lists, flags=flag_values)
def test_the_order_of_fields_does_not_matter(records: list[JsonValue], flags: dict[str, JsonValue]) -> None:
    turned = [reordered(record) for record in records]
    assert (
        sign(turned, reordered(flags), include_flags=True).digest
        == sign(records, flags, include_flags=True).digest
    )


@given(records=record_lists.filter(bool), data=st.data())
def test_a_changed_field_changes_the_signature(
    records: list[dict[str, JsonValue]], data: st.DataObject
) -> None:
    changed = copy.deepcopy(records)
    record = data.draw(st.sampled_from(changed))
    record["checksum"] = "something that no record has"
    assert sign(changed).digest != sign(records).digest


@given(records=record_lists.filter(bool))
def test_one_row_more_changes_the_signature(records: list[JsonValue]) -> None:
    assert sign([*records, records[0]]).digest != sign(records).digest


@given(records=record_lists, exclude=exclusions)
def test_excluded_fields_are_in_no_depth_of_the_payload(records: list[JsonValue], exclude: set[str]) -> None:
    payload = sign(records, exclude_fields=exclude).payload
    assert not keys_at_any_depth(payload) & exclude


@given(records=record_lists, exclude=exclusions, noise=values)
def test_an_excluded_field_never_changes_the_signature(
    records: list[dict[str, JsonValue]], exclude: set[str], noise: JsonValue
) -> None:
    noisy: list[JsonValue] = [{**record, **dict.fromkeys(exclude, noise)} for record in records]
    assert sign(noisy, exclude_fields=exclude).digest == sign([*records], exclude_fields=exclude).digest


@given(records=record_lists, flags=flag_values, exclude=exclusions, include=st.booleans())
def test_stored_rows_give_their_signature_again(
    *, records: list[JsonValue], flags: dict[str, JsonValue], exclude: set[str], include: bool
) -> None:
    stored = group_by_sbid(records, flags)
    signature = sign(records, flags, exclude_fields=exclude, include_flags=include)
    again = sign_stored(stored, exclude_fields=exclude, include_flags=include)
    assert canonical_json(again.payload) == canonical_json(signature.payload)
    assert again.digest == signature.digest


@given(records=record_lists, exclude=exclusions)
def test_signing_leaves_the_records_as_they_were(records: list[JsonValue], exclude: set[str]) -> None:
    before = copy.deepcopy(records)
    sign(records, exclude_fields=exclude)
    assert records == before


def test_stored_rows_keep_what_the_signature_leaves_out() -> None:
    record: JsonValue = {"sbid": 7, "dataset_id": "a", "access_url": "https://archive.example/a"}
    stored = group_by_sbid([record], {"complete": True})
    assert stored == {"7": {"datasets": [record], "discovery_flags": {"complete": True}}}


def test_excluded_names_stay_in_the_flags() -> None:
    signature = sign(
        [{"sbid": "1", "dataset_id": "a"}],
        {"access_url": 1},
        exclude_fields=["access_url"],
        include_flags=True,
    )
    assert signature.payload["1"] == {
        "datasets": [{"sbid": "1", "dataset_id": "a"}],
        "discovery_flags": {"access_url": 1},
    }


@pytest.mark.parametrize("flags", [None, {}])
def test_no_flags_and_empty_flags_are_the_same(flags: JsonValue) -> None:
    signature = sign([{"sbid": "1", "dataset_id": "a"}], flags, include_flags=True)
    assert signature.payload == {"1": {"datasets": [{"sbid": "1", "dataset_id": "a"}]}}


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (5, "not_object"),
        ({"dataset_id": "a"}, "missing_sbid"),
        ({"sbid": None, "dataset_id": "a"}, "missing_sbid"),
        ({"sbid": "1"}, "missing_dataset_identity"),
        ({"sbid": "1", "dataset_id": None}, "missing_dataset_identity"),
    ],
)
def test_a_record_that_cannot_be_stored_is_refused_with_its_index(record: JsonValue, code: str) -> None:
    good: JsonValue = {"sbid": "", "visibility_filename": ""}
    with pytest.raises(DataError) as caught:
        validate_records([good, record])
    assert (caught.value.code, caught.value.details["index"]) == (code, 1)
    assert caught.value.retry is Retry.NEVER
    assert "field_map" in caught.value.hint


def test_one_source_alone_still_has_a_combined_signature() -> None:
    assert (
        combined_signature({"source-1": "1" * 64})
        == "4f1c53b3ff1e725861aad5d421eddf48bcebc68d747b6dd84d5e61f616814b1f"
    )


def test_a_partition_key_leads_with_its_source() -> None:
    assert partition_key("HIPASSJ1318-21", "3f9a0c21be77" + "0" * 52) == ("HIPASSJ1318-21@3f9a0c21be77")


@pytest.mark.parametrize(
    ("source", "digest"),
    [("a...b", "0" * 64), ("a\nb", "0" * 64), ("", "0" * 64), ("a", "0" * 11), ("a", "G" * 64)],
)
def test_a_partition_key_that_dagster_would_refuse_is_refused(source: str, digest: str) -> None:
    with pytest.raises(InputError) as caught:
        partition_key(source, digest)
    assert caught.value.code == "invalid_partition_key"


def test_an_error_shows_as_json() -> None:
    with pytest.raises(DataError) as caught:
        validate_records([5])
    shown: dict[str, Any] = caught.value.as_dict()
    assert shown["details"] == {"index": 0}
