from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.errors import DataError
from beampipe_dagster.execution.manifest import (
    build_manifest,
    dataset_count,
    embedded_text,
    manifest_sha256,
    staging_context,
)
from beampipe_dagster.execution.patches import JsonObject, objects

if TYPE_CHECKING:
    from collections.abc import Sequence


def project(
    section: JsonObject | None = None, patches: Sequence[tuple[str, JsonObject]] = ()
) -> ProjectConfig:
    value: JsonObject = {
        "apiVersion": "beampipe.dev/v2",
        "kind": "ProjectConfig",
        "metadata": {"id": "t"},
        "graph_patches": [
            {"match": {"kind": "node_name", "equals": name}, "set": values} for name, values in patches
        ],
    }
    if section is not None:
        value["manifest"] = section
    return ProjectConfig.from_json(value)


BY_SOURCE: JsonObject = {"group_by": ["source_identifier"], "source_template": {}}
BY_BLOCK: JsonObject = {"group_by": ["source_identifier", "sbid"], "source_template": {}}


def record(source: JsonValue, sbid: JsonValue, dataset: str = "d", **more: JsonValue) -> JsonObject:
    return {"source_identifier": source, "sbid": sbid, "dataset_id": dataset, **more}


def shape(manifest: JsonObject) -> list[tuple[JsonValue, list[tuple[JsonValue, list[JsonValue]]]]]:
    return [
        (
            source["source_identifier"],
            [
                (block["sbid"], [d.get("dataset_id") for d in objects(block["datasets"])])
                for block in objects(source["sbids"])
            ],
        )
        for source in objects(manifest["sources"])
    ]


def values(manifest: JsonObject) -> dict[str, dict[str, JsonValue]]:
    overrides = cast("JsonObject", manifest["graph_overrides"])
    return {
        str(cast("JsonObject", patch["match"])["equals"]): {
            str(entry["name"]): entry["value"] for entry in objects(patch["fields"])
        }
        for patch in objects(overrides["patches"])
    }


# -- grouping


def test_sources_and_blocks_are_sorted_as_text_and_datasets_keep_their_order() -> None:
    records = [
        record("s2", "9", "z"),
        record("s2", "10", "b"),
        record("s2", "9", "a"),
        record("s1", "1", "x"),
    ]
    assert shape(build_manifest(project(BY_SOURCE), records)) == [
        ("s1", [("1", ["x"])]),
        ("s2", [("10", ["b"]), ("9", ["z", "a"])]),
    ]


def test_grouping_by_block_gives_a_source_one_entry_for_each_block() -> None:
    records = [record("s", "1", "a"), record("s", "2", "b"), record("s", "2", "c")]
    assert shape(build_manifest(project(BY_BLOCK), records)) == [
        ("s", [("1", ["a"])]),
        ("s", [("2", ["b", "c"])]),
    ]


def test_a_number_and_its_text_are_the_same_block_and_the_records_stay_as_they_are() -> None:
    records = [record("s", 7, "a"), record("s", "7", "b")]
    manifest = build_manifest(project(BY_BLOCK), records)
    assert shape(manifest) == [("s", [("7", ["a", "b"])])]
    (source,) = objects(manifest["sources"])
    (block,) = objects(source["sbids"])
    assert block["datasets"] == records


@pytest.mark.parametrize("section", [BY_SOURCE, None])
@pytest.mark.parametrize("sbid", ["", "0", 0])
def test_a_record_without_a_usable_block_is_left_out(section: JsonObject | None, sbid: JsonValue) -> None:
    without: JsonObject = {"source_identifier": "s", "dataset_id": "no sbid"}
    records = [record("s", "5", "kept"), record("s", sbid), without]
    assert shape(build_manifest(project(section), records)) == [("s", [("5", ["kept"])])]
    with pytest.raises(DataError) as caught:
        build_manifest(project(section), [record("s", sbid), without])
    assert caught.value.code == "no_usable_datasets"
    assert caught.value.hint


@pytest.mark.parametrize("section", [BY_SOURCE, None])
def test_a_null_block_is_kept_as_its_text(section: JsonObject | None) -> None:
    assert shape(build_manifest(project(section), [record("s", None)])) == [("s", [("null", ["d"])])]


@pytest.mark.parametrize("section", [BY_SOURCE, None])
@pytest.mark.parametrize("identifier", [5, None, ["s"]])
def test_a_source_identifier_that_is_no_text_is_unknown(
    section: JsonObject | None, identifier: JsonValue
) -> None:
    manifest = build_manifest(project(section), [record(identifier, "1")])
    assert shape(manifest) == [("unknown", [("1", ["d"])])]


def test_missing_and_empty_group_fields_fall_together_and_null_does_not() -> None:
    section: JsonObject = {"group_by": ["field"], "source_template": {}}
    records = [
        record("a", "1"),
        record("b", "1", field=""),
        record("c", "1", field="unknown"),
        record("d", "1", field=None),
        record("e", "1", field="null"),
    ]
    assert [s for s, _ in shape(build_manifest(project(section), records))] == ["d", "a"]


def test_excluded_blocks_are_left_out_only_with_a_manifest_section() -> None:
    records = [record("s", 1), record("s", "2")]
    kept = build_manifest(project(BY_SOURCE), records, exclude_sbids=["1"])
    assert shape(kept) == [("s", [("2", ["d"])])]
    assert len(shape(build_manifest(project(), records, exclude_sbids=["1"]))[0][1]) == 2
    with pytest.raises(DataError) as caught:
        build_manifest(project(BY_SOURCE), records, exclude_sbids=["2", "1"])
    assert caught.value.details == {"records": 2, "exclude_sbids": ["1", "2"]}


def test_without_a_section_an_entry_has_the_position_and_velocity_of_its_first_record() -> None:
    records = [record("s", "2", ra_string="later"), record("s", "1", ra_string="ra", vsys=1.5)]
    (source,) = objects(build_manifest(project(), records)["sources"])
    assert (source["ra_string"], source["dec_string"], source["vsys"]) == ("ra", None, 1.5)


# -- templates


def rendered(template: JsonValue, staging: JsonObject | None = None, **more: JsonValue) -> JsonValue:
    section: JsonObject = {"group_by": [], "source_template": {"out": template}}
    manifest = build_manifest(project(section), [{**record("s", "1"), **more}], staging=staging)
    (source,) = objects(manifest["sources"])
    return source["out"]


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{dataset_id}", "d"),
        ("{n}", 2505.3),
        ("{nothing}", None),
        ("{absent}", "{absent}"),
        ("x{n}", "x{n}"),
        ("{n}{n}", "{n}{n}"),
        ("{ n }", "spaced"),
        ("{}", "{}"),
        ("{", "{"),
        (5, 5),
        ([{"a": ["{n}"]}, None], [{"a": [2505.3]}, None]),
    ],
)
def test_only_a_whole_placeholder_is_replaced_and_the_value_keeps_its_type(
    template: JsonValue, value: JsonValue
) -> None:
    more: JsonObject = {"n": 2505.3, "nothing": None, " n ": "spaced"}
    assert rendered(template, None, **more) == value


def test_a_flag_is_looked_for_in_flags_then_record_then_staging() -> None:
    staging: JsonObject = {"f": "staged"}
    assert rendered("{flags.f}", staging, discovery_flags={"f": None}, f="record") is None
    assert rendered("{flags.f}", staging, discovery_flags={}, f="record") == "record"
    assert rendered("{flags.f}", staging, discovery_flags="none") == "staged"
    assert rendered("{flags.f}", {}) == "{flags.f}"


def test_a_dotted_path_leads_into_the_staging_context() -> None:
    staging: JsonObject = {"a": {"b": [1]}}
    assert rendered("{staging.a.b}", staging) == [1]
    assert rendered("{staging.a.c}", staging) == "{staging.a.c}"
    assert rendered("{staging.a.b.c}", staging) == "{staging.a.b.c}"


def test_the_records_tell_what_is_staged_when_nothing_else_does() -> None:
    staged = record("s", "1", scan_id="scan-1", staged_url="https://a/x")
    section: JsonObject = {
        "group_by": [],
        "source_template": {"url": "{staging.data_url_by_scan_id.scan-1}"},
    }
    (source,) = objects(build_manifest(project(section), [staged])["sources"])
    assert source["url"] == "https://a/x"


def test_the_staging_context_maps_identifiers_to_urls_and_only_to_those() -> None:
    records = [
        {"scan_id": 7, "sbid": "1", "data_url": "d", "staged_url": "s", "checksum_url": "c"},
        {"scan_id": "8", "sbid": 2, "staged_url": "s8", "evaluation_file_url": "e", "eval_url": 5},
        {"scan_id": "", "data_url": "x"},
    ]
    assert staging_context(cast("list[JsonObject]", records)) == {
        "data_url_by_scan_id": {"7": "d", "8": "s8"},
        "checksum_url_by_scan_id": {"7": "c"},
        "eval_url_by_sbid": {"2": "e"},
    }


def test_the_names_that_the_graph_reads_win_over_the_template() -> None:
    section: JsonObject = {
        "group_by": [],
        "source_template": {"sbids": "mine", "source_identifier": "mine", "x": 1},
    }
    manifest = build_manifest(project(section), [record("s", "1")])
    assert shape(manifest) == [("s", [("1", ["d"])])]


@pytest.mark.parametrize(
    ("expand_from", "datasets"),
    [("metadata", [{"id": "d"}]), (None, [record("s", "1")]), ("rows", [record("s", "1")])],
)
def test_datasets_are_rendered_only_when_expanded_from_metadata(
    expand_from: str | None, datasets: JsonValue
) -> None:
    section: JsonObject = {**BY_SOURCE, "dataset_template": {"id": "{dataset_id}"}}
    if expand_from is not None:
        section["expand_from"] = expand_from
    (source,) = objects(build_manifest(project(section), [record("s", "1")])["sources"])
    (block,) = objects(source["sbids"])
    assert block["datasets"] == datasets


# -- overrides


def test_without_patches_the_beam_scatter_gets_a_copy_for_each_dataset_of_all_sources() -> None:
    records = [record("a", "1"), record("a", "2"), record("b", "1")]
    manifest = build_manifest(project(BY_BLOCK), records)
    assert values(manifest) == {"Scatter/GenericScatterApp/Beam": {"num_of_copies": 3}}
    assert dataset_count(cast("list[JsonValue]", manifest["sources"])) == 3


def test_expressions_add_up_over_every_entry_of_the_manifest() -> None:
    patches: list[tuple[str, JsonObject]] = [
        ("N", {"count": "$count(sbids[].datasets[])", "sum": " $sum(sbids[].datasets[].n) "})
    ]
    records = [record("s", "1", n=2), record("s", "2", n=3), record("s", "2", n=5)]
    assert values(build_manifest(project(BY_BLOCK, patches), records)) == {"N": {"count": 3, "sum": 10}}


def test_what_is_no_expression_stays_and_fields_are_sorted() -> None:
    literal: JsonObject = {"z": "$nope(x)", "b": None, "a": {"x": ["$count(sbids[])"]}, "f": 1.5}
    manifest = build_manifest(project(BY_SOURCE, [("N", literal)]), [record("s", "1")])
    assert values(manifest)["N"] == literal
    assert list(values(manifest)["N"]) == ["a", "b", "f", "z"]


def test_a_patch_for_no_name_is_left_out() -> None:
    patches: list[tuple[str, JsonObject]] = [(" ", {"a": 1}), ("N", {"a": 1})]
    assert values(build_manifest(project(None, patches), [record("s", "1")])) == {"N": {"a": 1}}


# -- text and hash


def test_the_hash_covers_the_overrides_and_never_the_run_record() -> None:
    manifest = build_manifest(project(BY_SOURCE), [record("s", "1")])
    sha256 = manifest_sha256(manifest)
    assert manifest_sha256({**manifest, "beampipe_run_record": {"scheduler": {}}}) == sha256
    assert manifest_sha256({**manifest, "graph_overrides": {"patches": []}}) != sha256


def test_the_text_for_the_graph_has_the_run_record_and_no_overrides() -> None:
    manifest: JsonObject = {"sources": [], "graph_overrides": {}, "beampipe_run_record": {"a": 1}}
    assert embedded_text(manifest) == '{"beampipe_run_record":{"a":1},"sources":[]}'
    assert embedded_text([1]) == "{}"


RECORDS = st.lists(
    st.builds(
        record,
        st.sampled_from(["a", "b", None]),
        st.sampled_from(["1", 2, "10", 0, "", None]),
        st.text(max_size=3),
    ),
    max_size=8,
)


@given(RECORDS, st.sampled_from([BY_SOURCE, BY_BLOCK, None]))
def test_every_usable_record_is_in_the_manifest_once_and_no_record_is_changed(
    records: list[JsonObject], section: JsonObject | None
) -> None:
    before = copy.deepcopy(records)
    usable = [r for r in records if r["sbid"] not in ("", 0)]
    try:
        manifest = build_manifest(project(section), records)
    except DataError:
        assert not usable
        return
    kept = [
        dataset
        for source in objects(manifest["sources"])
        for block in objects(source["sbids"])
        for dataset in objects(block["datasets"])
    ]
    assert sorted(map(canonical_json, kept)) == sorted(map(canonical_json, usable))
    assert values(manifest)["Scatter/GenericScatterApp/Beam"]["num_of_copies"] == len(usable)
    assert records == before
