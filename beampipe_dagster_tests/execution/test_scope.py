"""The scope of an execution: parsed, selected, and kept by staging and by the manifest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.errors import DataError, InputError, Retry
from beampipe_dagster.execution.scope import (
    Dataset,
    check_manifest,
    check_staged,
    datasets_of,
    parse_sources,
    select_datasets,
    tells_datasets_apart,
)
from beampipe_dagster_tests.support.platforms import survey_spec

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


def record(source: str = "s", sbid: str = "1", dataset: str = "a", **more: JsonValue) -> dict[str, JsonValue]:
    return {"source_identifier": source, "sbid": sbid, "dataset_id": dataset, **more}


def manifest(*blocks: tuple[str, str, list[dict[str, JsonValue]]]) -> dict[str, JsonValue]:
    """One entry for each block."""
    return {
        "sources": [
            {"source_identifier": source, "sbids": [{"sbid": sbid, "datasets": [*datasets]}]}
            for source, sbid, datasets in blocks
        ]
    }


def test_sources_are_read_with_their_blocks_trimmed_and_in_order() -> None:
    value: JsonValue = [
        {"source_identifier": " b ", "sbids": [" 9", "10 "], "priority": 1},
        {"source_identifier": "a"},
        {"source_identifier": "c", "sbids": None},
    ]
    assert parse_sources(value) == {"b": ("10", "9"), "a": None, "c": None}


@pytest.mark.parametrize(
    ("value", "code", "path"),
    [
        (None, "sources_not_array", "sources"),
        ({"source_identifier": "s"}, "sources_not_array", "sources"),
        ("s", "sources_not_array", "sources"),
        ([], "sources_empty", "sources"),
        (["s"], "entry_not_object", "sources[0]"),
        ([{"source_identifier": "s"}, None], "entry_not_object", "sources[1]"),
        ([{}], "source_identifier_blank", "sources[0].source_identifier"),
        ([{"source_identifier": 5}], "source_identifier_blank", "sources[0].source_identifier"),
        ([{"source_identifier": " \t"}], "source_identifier_blank", "sources[0].source_identifier"),
        (
            [{"source_identifier": "s"}, {"source_identifier": "s "}],
            "source_duplicate",
            "sources[1].source_identifier",
        ),
        ([{"source_identifier": "s", "sbids": {}}], "sbids_not_array", "sources[0].sbids"),
        ([{"source_identifier": "s", "sbids": 1}], "sbids_not_array", "sources[0].sbids"),
        ([{"source_identifier": "s", "sbids": []}], "sbids_empty", "sources[0].sbids"),
        ([{"source_identifier": "s", "sbids": ["1", 2]}], "sbid_blank", "sources[0].sbids[1]"),
        ([{"source_identifier": "s", "sbids": [" "]}], "sbid_blank", "sources[0].sbids[0]"),
        ([{"source_identifier": "s", "sbids": ["1", " 1"]}], "sbid_duplicate", "sources[0].sbids[1]"),
    ],
)
def test_what_is_no_scope_is_refused_with_its_place(value: JsonValue, code: str, path: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sources(value)
    assert (caught.value.code, caught.value.details["path"]) == (code, path)
    assert caught.value.message.startswith(path)
    assert caught.value.hint
    assert caught.value.retry is Retry.NEVER


@given(json_values)
def test_whatever_is_asked_for_is_a_selection_or_a_refusal(value: Any) -> None:
    try:
        selection = parse_sources(value)
    except InputError:
        return
    assert selection
    assert all(source == source.strip() != "" for source in selection)


def test_a_selection_takes_the_named_blocks_and_else_all() -> None:
    archive: dict[str, dict[str, JsonValue]] = {
        "s": {"1": {"datasets": [record()]}, "2": {"datasets": [record(sbid="2"), record("s", "2", "b")]}}
    }
    assert select_datasets({"s": ("1",)}, archive) == {Dataset("s", "1", "a")}
    assert len(select_datasets({"s": None}, archive)) == 3


def test_a_dataset_without_an_id_is_known_by_its_file() -> None:
    one: JsonValue = {"source_identifier": "s", "sbid": "1", "dataset_id": " ", "visibility_filename": "f.ms"}
    found = select_datasets({"s": None}, {"s": {"1": {"datasets": [one]}}})
    assert found == {Dataset("s", "1", "f.ms")}


@pytest.mark.parametrize(
    ("blocks", "code", "words"),
    [
        ({"2": {"datasets": [record(sbid="2")]}}, "selected_sbids_missing", "selected SBIDs 1"),
        ({"1": {"datasets": []}}, "archive_payload_invalid", "no list of datasets"),
        ({"1": {"discovery_status": "no_datasets"}}, "archive_payload_invalid", "no list of datasets"),
        ({"1": [record()]}, "archive_payload_invalid", "no list of datasets"),
        (
            {"1": {"datasets": [record("other")]}},
            "dataset_parent_mismatch",
            "'other' does not match the archive/manifest parent 's'",
        ),
        (
            {"1": {"datasets": [record(sbid="2")]}},
            "dataset_parent_mismatch",
            "'2' does not match the archive/manifest parent '1'",
        ),
        ({"1": {"datasets": [record(), record()]}}, "dataset_duplicate", "s/1/a comes twice"),
        ({"1": {"datasets": [{"sbid": "1"}]}}, "dataset_identity_missing", "lacks"),
        ({"1": {"datasets": [{**record(), "sbid": 1}]}}, "dataset_identity_missing", "lacks"),
        ({"1": {"datasets": ["a"]}}, "dataset_identity_missing", "lacks"),
    ],
)
def test_an_archive_that_does_not_hold_the_selection_is_refused(
    blocks: dict[str, JsonValue], code: str, words: str
) -> None:
    with pytest.raises(DataError) as caught:
        select_datasets({"s": ("1",)}, {"s": blocks})
    assert caught.value.code == code
    assert words in caught.value.message


def test_a_source_without_any_metadata_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        select_datasets({"s": None}, {})
    assert caught.value.code == "no_archive_metadata"


EXPECTED = {Dataset("s", "1", "a"), Dataset("s", "2", "b")}


def test_staging_may_add_to_records_but_not_to_the_scope() -> None:
    staged: list[JsonValue] = [record("s", "2", "b", staged_url="https://x"), record()]
    check_staged(staged, ["3"], EXPECTED)


@pytest.mark.parametrize(
    ("records", "skipped", "code"),
    [
        ([record(), record("s", "2", "b")], ["2"], "staging_skipped_selected_sbids"),
        ([record()], [], "staging_changed_scope"),
        ([record(), record("s", "2", "b"), record("s", "2", "c")], [], "staging_changed_scope"),
        ([record("t"), record("s", "2", "b")], [], "staging_changed_scope"),
        ([record(), record(), record("s", "2", "b")], [], "dataset_duplicate"),
        ([], [], "staging_changed_scope"),
        ([None], [], "dataset_identity_missing"),
    ],
)
def test_staging_that_changed_the_scope_is_refused(
    records: list[JsonValue], skipped: list[str], code: str
) -> None:
    with pytest.raises(DataError) as caught:
        check_staged(records, skipped, EXPECTED)
    assert caught.value.code == code
    assert caught.value.hint


def test_a_changed_scope_says_what_is_missing_and_what_nobody_selected() -> None:
    extra: list[JsonValue] = [record("s", "1", f"x{number:02}") for number in range(40)]
    with pytest.raises(DataError) as caught:
        check_staged(extra, [], EXPECTED)
    assert caught.value.details == {
        "missing": ["s/1/a", "s/2/b"],
        "extra": ["s/1/x00", "s/1/x01", "s/1/x02", "s/1/x03", "s/1/x04"],
        "missing_count": 2,
        "extra_count": 40,
    }
    assert "and 35 more" in caught.value.message


def test_a_source_may_have_an_entry_for_each_of_its_blocks() -> None:
    check_manifest(manifest(("s", "1", [record()]), ("s", "2", [record("s", "2", "b")])), EXPECTED)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "manifest_sources_missing"),
        ({}, "manifest_sources_missing"),
        ({"sources": []}, "manifest_sources_missing"),
        ({"sources": ["s"]}, "manifest_entry_invalid"),
        ({"sources": [{"source_identifier": "s", "sbids": []}]}, "manifest_entry_invalid"),
        ({"sources": [{"source_identifier": "s", "sbids": [{}]}]}, "manifest_entry_invalid"),
        ({"sources": [{"source_identifier": "s", "sbids": [{"sbid": "1"}]}]}, "manifest_datasets_missing"),
        (manifest(("s", "1", [record()]), ("s", "1", [record("s", "1", "b")])), "manifest_sbid_duplicate"),
        (manifest(("s", "1", [record()])), "manifest_changed_scope"),
        (manifest(("s", "1", [record("t")])), "dataset_parent_mismatch"),
        (manifest(("s", "1", [record(), record()])), "dataset_duplicate"),
    ],
)
def test_a_manifest_about_something_else_is_refused(value: JsonValue, code: str) -> None:
    with pytest.raises(DataError) as caught:
        check_manifest(value, EXPECTED)
    assert caught.value.code == code


@given(st.sets(st.tuples(st.sampled_from("st"), st.sampled_from("12"), st.sampled_from("abc")), min_size=1))
def test_what_is_selected_is_kept_by_a_manifest_of_exactly_that(keys: set[tuple[str, str, str]]) -> None:
    grouped: dict[tuple[str, str], list[dict[str, JsonValue]]] = {}
    for source, sbid, dataset in sorted(keys):
        grouped.setdefault((source, sbid), []).append(record(source, sbid, dataset))
    value = manifest(*((source, sbid, datasets) for (source, sbid), datasets in grouped.items()))
    expected = {Dataset(*key) for key in keys}
    check_manifest(value, expected)
    with pytest.raises(DataError):
        check_manifest(value, expected | {Dataset("s", "9", "z")})


def test_records_say_which_datasets_they_are_about_and_each_only_once() -> None:
    assert datasets_of([record(), record(dataset="b")]) == {Dataset("s", "1", "a"), Dataset("s", "1", "b")}
    wrongs: list[tuple[list[JsonValue], str]] = [
        ([record(), record()], "dataset_duplicate"),
        ([{"sbid": "1"}], "dataset_identity_missing"),
    ]
    for wrong, code in wrongs:
        with pytest.raises(DataError) as caught:
            datasets_of(wrong)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("excluded", "template", "told"),
    [
        ([], None, True),
        (["access_url"], None, True),
        (["dataset_id"], None, True),
        (["dataset_id", "visibility_filename"], None, False),
        (["sbid"], None, False),
        ([], {"source_identifier": "", "sbid": "", "visibility_filename": ""}, True),
        (["visibility_filename"], {"source_identifier": "", "sbid": "", "visibility_filename": ""}, False),
        ([], {"sbid": "", "dataset_id": ""}, False),
    ],
)
def test_datasets_cannot_be_told_apart_without_their_identity(
    excluded: list[str], template: dict[str, str] | None, *, told: bool
) -> None:
    spec = survey_spec("0" * 64)
    spec["discovery"]["prepare_metadata"]["signature"]["exclude_fields"] = excluded
    if template is not None:
        spec["manifest"] = {"expand_from": "metadata", "dataset_template": template}
    assert tells_datasets_apart(ProjectConfig.from_json(spec)) is told
