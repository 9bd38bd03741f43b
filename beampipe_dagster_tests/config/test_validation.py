"""The rules over a project file, with the places that they name."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.diagnostics import Severity, dotted, nearest
from beampipe_dagster.config.validation import load_project, validate_project
from beampipe_dagster.errors import ConfigError, Retry

HEAD = """\
apiVersion: beampipe.dev/v2
kind: ProjectConfig
metadata: {id: t}
adapters: {required: [casda]}
"""


def codes(rest: str, head: str = HEAD) -> list[tuple[str, str]]:
    return [(error.path, error.code) for error in validate_project(head + rest).errors]


def test_a_valid_file_has_no_errors_and_the_digest_of_its_project() -> None:
    report = validate_project(HEAD, name="s.yaml")
    assert report.valid
    assert report.project_id == "t"
    assert report.spec_sha256 == load_project(HEAD).spec_sha256
    assert report.as_dict() == {
        "project_id": "t",
        "valid": True,
        "errors": [],
        "spec_sha256": report.spec_sha256,
    }


def test_an_error_stands_at_the_line_and_column_of_its_value() -> None:
    report = validate_project(HEAD + "graph:\n  path: g\n  sha256: abc\n")
    (error,) = report.errors
    assert (error.path, error.code, error.line, error.column) == ("graph.sha256", "invalid_sha256", 7, 3)
    assert error.text("s.yaml").startswith("s.yaml:7:3: error [invalid_sha256] graph.sha256: ")


def test_an_error_about_a_missing_value_stands_at_what_is_around_it() -> None:
    (error,) = validate_project(HEAD + "graph:\n  path: g\n").errors
    assert (error.path, error.line, error.column) == ("graph.sha256", 5, 1)


def test_all_structure_errors_are_reported_in_the_order_of_the_text() -> None:
    report = validate_project(
        "apiVersion: beampipe.dev/v2\nmetadata: {id: t, idd: 1}\n"
        "adapters:\n  tap: {retires: 1}\ndiscovery: []\n"
    )
    assert [(error.path, error.line, error.column) for error in report.errors] == [
        (".", 1, 1),
        ("metadata.idd", 2, 19),
        ("adapters.tap.retires", 4, 9),
        ("discovery", 5, 1),
    ]
    assert {error.code for error in report.errors} == {"invalid_config_structure"}
    assert all(error.hint for error in report.errors)
    assert report.project_id == "t"


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("grpah: {}\n", "graph"),
        (
            "discovery: {queries: [{name: a, adapter: b, template: c, sourceid_transform: d}]}\n",
            "source_id_transform",
        ),
        ("definitions: {transforms: {a: {kind: split_last, seperators: ['/']}}}\n", "separators"),
        ("automation: {execution: {max_sources: 1}}\n", "max_sources_per_execution"),
        ("graph_patches: [{match: {kind: node_name, eqals: n}, set: {a: 1}}]\n", "equals"),
        ("source_identity: {template_vars: {v: {form: x}}}\n", "from"),
        ("discovery: {prepare_metadata: {field_map: {a: {frm: x}}}}\n", "from"),
    ],
)
def test_an_unknown_field_has_the_nearest_known_one_as_its_hint(text: str, suggestion: str) -> None:
    (error,) = validate_project(HEAD + text).errors
    assert error.hint is not None
    assert suggestion in error.hint


def test_text_that_is_not_yaml_has_its_place_and_the_digest_of_its_bytes() -> None:
    raw = b"a: [1,\nb: }"
    report = validate_project(raw)
    (error,) = report.errors
    assert (error.path, error.code) == ("line 2, column 4", "invalid_yaml")
    assert (error.line, error.column) == (2, 4)
    assert report.spec_sha256 == hashlib.sha256(raw).hexdigest()
    assert report.project_id == ""


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("adapters2: 1\n", [("adapters2", "invalid_config_structure")]),
        ("output_verification: {inventory_schema: x}\n", [
            ("output_verification.inventory_schema", "unsupported_output_inventory_schema"),
        ]),
        ("graph: {url: ' ', sha256: " + "A" * 64 + "}\n", [("graph.url", "required")]),
        ("graph: {url: a, path: b, sha256: " + "a" * 64 + "}\n", [("graph", "mutually_exclusive")]),
        ("source_identity: {canonical: ''}\n", [("source_identity.canonical", "required")]),
        ("discovery: {queries: [{name: a, adapter: b, template: c, source_id_transform: q}]}\n", [
            ("discovery.queries[0].source_id_transform", "unknown_transform"),
        ]),
        ("definitions: {transforms: {a: {kind: zap}}}\n", [
            ("definitions.transforms.a.kind", "unknown_transform_kind"),
        ]),
        ("definitions: {transforms: {a: {kind: replace, from: ''}}}\n", [
            ("definitions.transforms.a.from", "required"),
        ]),
        ("definitions: {transforms: {a: {kind: add_suffix}, b: {kind: default_if_empty}}}\n", [
            ("definitions.transforms.a.suffix", "required"),
            ("definitions.transforms.b.default", "required"),
        ]),
        ("graph_patches: [{match: {kind: node_name, equals: ' '}}]\n", [
            ("graph_patches[0].match.equals", "required"),
            ("graph_patches[0].set", "required"),
        ]),
        ("discovery: {prepare_metadata: {signature: {exclude_fields: [a, ' ']}}}\n", [
            ("discovery.prepare_metadata.signature.exclude_fields[1]", "required"),
        ]),
        ("automation: {execution: {max_wait_minutes: 0, execution_rest_remote_poll_interval_seconds: 0}}\n", [
            ("automation.execution.max_wait_minutes", "invalid_limit"),
            ("automation.execution.execution_rest_remote_poll_interval_seconds", "invalid_limit"),
        ]),
    ],
)  # fmt: skip  # one case a paragraph
def test_a_rule_that_is_broken_is_reported_by_path_and_code(
    rest: str, expected: list[tuple[str, str]]
) -> None:
    assert codes(rest) == expected


def test_the_old_version_is_refused_with_a_hint() -> None:
    head = HEAD.replace("/v2", "/v1")
    (error,) = validate_project(head).errors
    assert (error.code, bool(error.hint)) == ("legacy_api_version", True)


@pytest.mark.parametrize("steps", [["a"], ["b", "c"], ["c"]])
def test_a_chain_that_never_ends_is_an_error(steps: list[str]) -> None:
    transforms = f"a: {{kind: chain, steps: {steps}}}, b: {{kind: trim}}, c: {{kind: chain, steps: [b, a]}}"
    found = codes(f"definitions: {{transforms: {{{transforms}}}}}\n")
    assert ("definitions.transforms.a.steps", "cyclic_transform") in found
    assert {code for _, code in found} == {"cyclic_transform"}


def test_a_chain_that_uses_another_twice_is_no_circle() -> None:
    transforms = "a: {kind: chain, steps: [b, b]}, b: {kind: chain, steps: [c, c]}, c: {kind: trim}"
    assert codes(f"definitions: {{transforms: {{{transforms}}}}}\n") == []


@pytest.mark.parametrize(
    ("pattern", "valid"),
    [("SB([0-9]+)", True), (r"(?P<x>a)\z", True), ("(a", False), ("(?=a)", False), (r"(a)\1", False)],
)
def test_a_pattern_must_be_one_of_the_patterns_language(pattern: str, *, valid: bool) -> None:
    found = codes(f"definitions: {{transforms: {{a: {{kind: regex_extract, pattern: '{pattern}'}}}}}}\n")
    assert found == ([] if valid else [("definitions.transforms.a.pattern", "invalid_regex")])


def test_changes_that_move_signatures_are_warned_of() -> None:
    rest = "discovery: {{prepare_metadata: {{field_map: {{a: {{from: {0}}}}}, "
    rest += "signature: {{exclude_fields: [{0}]}}}}}}\n"
    rest += "definitions: {{transforms: {{a: {{kind: add_prefix, prefix: {0}}}}}}}\n"
    active = load_project(HEAD + rest.format("x"))
    assert validate_project(HEAD + rest.format("x"), active=active).warnings == ()
    report = validate_project(HEAD + rest.format("y"), active=active)
    assert report.valid
    assert [(item.code, item.severity) for item in report.warnings] == [
        ("signature_changed", Severity.WARNING),
        ("field_map_changed", Severity.WARNING),
        ("definitions_changed", Severity.WARNING),
    ]
    assert "warnings" in report.as_dict()


def test_an_invalid_project_is_refused_with_the_count_and_the_first_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        load_project(HEAD + "graph: {}\n", name="s.yaml")
    error = caught.value
    assert error.code == "invalid_project"
    assert error.retry is Retry.NEVER
    assert error.message.startswith("s.yaml:5:1: the project file has 2 errors, the first: graph: ")
    assert [item["code"] for item in error.details["diagnostics"]] == ["mutually_exclusive", "required"]
    assert error.hint


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_whatever_the_file_holds_the_answer_is_a_report(text: str | bytes) -> None:
    report = validate_project(text)
    assert not report.valid
    assert len(report.spec_sha256) == 64


def test_paths_are_dotted_with_indexes_in_brackets() -> None:
    assert dotted(()) == "."
    assert dotted(("a", 0, "b")) == "a[0].b"
    assert dotted(("1",)) == "1"


def test_the_nearest_word_is_suggested_and_else_some_of_the_known_ones() -> None:
    assert nearest("grpah", ["graph", "metadata"]) == "Did you mean graph?"
    assert nearest("zzz", ["graph", "metadata"]) == "Known here: graph, metadata."
    assert len(nearest("zzz", [f"name{i}" for i in range(100_000)])) < 500
    assert nearest("zzz", []) == "Nothing is known here."


STRUCTURE = "invalid_config_structure"
EXEC, DISC = "automation.execution", "automation.discovery"
POLL = "execution_rest_remote_poll_interval_seconds"


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        # null: absent for what is optional, an error for what has a default
        ("graph: ~\nmanifest: ~\nextension: ~\ndefinitions: ~\nsource_identity: ~\n", []),
        ("automation: {execution: ~, discovery: ~}\n", []),
        ("discovery: {prepare_metadata: {signature: ~}}\n", []),
        ("automation: ~\n", [("automation", STRUCTURE)]),
        ("output_verification: ~\n", [("output_verification", STRUCTURE)]),
        ("graph_patches: ~\n", [("graph_patches", STRUCTURE)]),
        ("definitions: {transforms: ~}\n", [("definitions.transforms", STRUCTURE)]),
        ("source_identity: {canonical: ~}\n", [("source_identity.canonical", STRUCTURE)]),
        ("extension: {hooks: ~}\n", [("extension.hooks", STRUCTURE)]),
        # numbers: whole ones are whole, floats may be whole, none is text, true is none
        (f"automation: {{execution: {{{POLL}: 1}}}}\n", []),
        (f"automation: {{execution: {{{POLL}: .nan}}}}\n", []),
        (f"automation: {{execution: {{{POLL}: -.inf}}}}\n", []),
        (f"automation: {{execution: {{{POLL}: -0.0}}}}\n", [(f"{EXEC}.{POLL}", "invalid_limit")]),
        (f"automation: {{execution: {{{POLL}: true}}}}\n", [(f"{EXEC}.{POLL}", STRUCTURE)]),
        (f"automation: {{execution: {{{POLL}: '1'}}}}\n", [(f"{EXEC}.{POLL}", STRUCTURE)]),
        ("automation: {discovery: {batch_size: 4.0}}\n", [(f"{DISC}.batch_size", STRUCTURE)]),
        ("automation: {discovery: {batch_size: true}}\n", [(f"{DISC}.batch_size", STRUCTURE)]),
        ("automation: {discovery: {batch_size: .nan}}\n", [(f"{DISC}.batch_size", STRUCTURE)]),
        ("automation: {discovery: {queue_max_depth: .nan}}\n", []),
        ("automation: {discovery: {batch_size: 9223372036854775807}}\n", []),
        ("automation: {discovery: {batch_size: 9223372036854775808}}\n", [(f"{DISC}.batch_size", STRUCTURE)]),
        ("automation: {discovery: {batch_size: -9223372036854775808}}\n", [
            (f"{DISC}.batch_size", "invalid_limit"),
        ]),
        ("automation: {discovery: {batch_size: 0x10}}\n", []),
        ("definitions: {transforms: {a: {kind: trim, group: 4294967295}}}\n", []),
        ("definitions: {transforms: {a: {kind: trim, group: 4294967296}}}\n", [
            ("definitions.transforms.a.group", STRUCTURE),
        ]),
        # booleans are true and false only
        ("output_verification: {required: yes}\n", [("output_verification.required", STRUCTURE)]),
        ("output_verification: {required: 1}\n", [("output_verification.required", STRUCTURE)]),
        ("output_verification: {required: TRUE}\n", []),
        # empty is not absent
        ("definitions: {transforms: {a: {kind: split_last, separators: []}}}\n", [
            ("definitions.transforms.a.separators", "required"),
        ]),
        ("definitions: {transforms: {a: {kind: split_last, separators: ~}}}\n", [
            ("definitions.transforms.a.separators", "required"),
        ]),
        ("discovery: {prepare_metadata: {field_map: {a: {from: x, transform: []}}}}\n", [
            ("discovery.prepare_metadata.field_map.a.transform", "empty_transform_chain"),
        ]),
        ("discovery: {prepare_metadata: {field_map: {a: {from: x, transform: ~}}}}\n", []),
        ("graph: {url: '', path: ''}\n", [
            ("graph", "mutually_exclusive"),
            ("graph.url", "required"),
            ("graph.path", "required"),
            ("graph.sha256", "required"),
        ]),
        ("graph: {path: g, sha256: ''}\n", [("graph.sha256", "invalid_sha256")]),
        # words that are not known, the word `unknown` among them
        ("definitions: {transforms: {a: {kind: unknown}}}\n", [
            ("definitions.transforms.a.kind", "unknown_transform_kind"),
        ]),
        ("definitions: {transforms: {a: {kind: Trim}}}\n", [
            ("definitions.transforms.a.kind", "unknown_transform_kind"),
        ]),
        ("extension: {hooks: [unknown]}\n", [("extension.hooks[0]", "unknown_extension_hook")]),
        ("extension: {hooks: [1]}\n", [("extension.hooks[0]", STRUCTURE)]),
        # keys: scalars become text, anything is tolerated in `signature` and in it only
        ("definitions: {transforms: {1: {kind: trim}, true: {kind: trim}}}\n", []),
        ("discovery: {prepare_metadata: {signature: {more: {a: 1}}}}\n", []),
        ("discovery: {prepare_metadata: {signature: {more: 1, exclude_fields: [1]}}}\n", [
            ("discovery.prepare_metadata.signature.exclude_fields[0]", STRUCTURE),
        ]),
        ("discovery: {prepare_metadata: {more: 1}}\n", [("discovery.prepare_metadata.more", STRUCTURE)]),
        ("<<: {graph: {}}\n", [("<<", STRUCTURE)]),
        ("graph: !file g.graph\n", [("graph.!file", STRUCTURE)]),
    ],
)  # fmt: skip  # one case a paragraph
def test_the_edges_of_types_and_absence_are_where_the_format_has_them(
    rest: str, expected: list[tuple[str, str]]
) -> None:
    assert codes(rest) == expected


def test_rules_are_told_in_their_own_order_and_names_in_the_alphabet() -> None:
    rest = (
        "discovery: {queries: [{name: '', adapter: a, template: t, source_id_transform: x}],"
        " prepare_metadata: {signature: {exclude_fields: ['']}, discovery_flags: {f: {}},"
        " field_map: {z: {}, a: {}}}}\n"
        "extension: {hooks: [boom]}\n"
        "source_identity: {canonical: ' ', template_vars: {z: {transform: y}, a: {transform: y}}}\n"
        "output_verification: {inventory_schema: x}\n"
        "automation: {execution: {max_wait_minutes: 0}, discovery: {batch_size: 0}}\n"
        "graph: {}\n"
    )
    assert codes(rest, HEAD.replace("{id: t}", "{id: ' '}").replace("[casda]", "[]")) == [
        ("metadata.id", "required"),
        ("adapters.required", "required"),
        ("automation.discovery.batch_size", "invalid_limit"),
        ("automation.execution.max_wait_minutes", "invalid_limit"),
        ("output_verification.inventory_schema", "unsupported_output_inventory_schema"),
        ("graph", "mutually_exclusive"),
        ("graph.sha256", "required"),
        ("discovery.queries[0].name", "required"),
        ("source_identity.canonical", "required"),
        ("extension.hooks[0]", "unknown_extension_hook"),
        ("source_identity.template_vars.a.transform", "unknown_transform"),
        ("source_identity.template_vars.z.transform", "unknown_transform"),
        ("discovery.queries[0].source_id_transform", "unknown_transform"),
        ("discovery.prepare_metadata.field_map.a.from", "required"),
        ("discovery.prepare_metadata.field_map.z.from", "required"),
        ("discovery.prepare_metadata.discovery_flags.f.from", "required"),
        ("discovery.prepare_metadata.signature.exclude_fields[0]", "required"),
    ]
