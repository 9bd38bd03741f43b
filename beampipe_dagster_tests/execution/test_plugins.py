"""Plug-ins as installed packages: real distributions with real entry points, on a path of their own."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.validation import load_project, validate_project
from beampipe_dagster.discovery.plugins import GROUP, WALLABY, Plugins, rules_of
from beampipe_dagster.discovery.prepare import BUILT_IN
from beampipe_dagster.errors import BeampipeError, ConfigError, DataError, Retry
from beampipe_dagster.execution.manifest import build_manifest
from beampipe_dagster.execution.plugins import through_plugins
from beampipe_dagster.execution.revisions import RevisionService
from beampipe_dagster.ledger.states import Status
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage, survey_spec

Install = Callable[..., str]
_NUMBER = itertools.count()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with one plug-in, whose class has these methods; gives the module's name."""

    def done(body: str, *, name: str = "mine", version: str = "1.2") -> str:
        module = f"plugin_under_test_{next(_NUMBER)}"
        home = tmp_path / module
        info = home / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:Mine\n")
        head = (
            "from beampipe_dagster.discovery.prepare import PreparedMetadata, Rules\n"
            "from beampipe_dagster.errors import DataError\n\n\nclass Mine:\n"
        )
        (home / f"{module}.py").write_text(head + textwrap.indent(textwrap.dedent(body), "    "))
        monkeypatch.syspath_prepend(str(home))
        return module

    return done


def config(*plugins: tuple[str, str], **changes: Any) -> ProjectConfig:
    named = [{"name": name, "version": version} for name, version in plugins]
    return ProjectConfig.from_json(survey_spec("0" * 64, plugins=named, **changes))


def failure(action: Callable[[], object], kind: type[BeampipeError] = DataError) -> BeampipeError:
    with pytest.raises(kind) as caught:
        action()
    return caught.value


RECORDS: list[dict[str, Any]] = [
    {"source_identifier": "A", "sbid": "1", "dataset_id": "a"},
    {"source_identifier": "A", "sbid": "1", "dataset_id": "b"},
]


def made(*plugins: tuple[str, str], **changes: Any) -> Any:
    survey = config(*plugins, **changes)
    return through_plugins(survey, RECORDS, build_manifest(survey, RECORDS), Plugins().of(survey))


MINE = ("mine", "1.2")
PREPARE = """
def prepare_metadata(self, config, source_identifier, rows, enrichments, prepared):
    for record in prepared.records:
        record["field"] = "F" + record["dataset_id"][:1]
    return prepared
"""


def test_a_survey_without_plugins_has_only_the_built_in_one_and_its_digest_stays() -> None:
    plain = ProjectConfig.from_json(survey_spec("0" * 64))
    assert Plugins().of(plain) == (WALLABY,)
    assert rules_of((WALLABY,)) == BUILT_IN
    assert "plugins" not in plain.canonical_text()
    assert config().spec_sha256 == plain.spec_sha256
    assert Plugins().of(config(("wallaby", "1"))) == (WALLABY,)


def test_a_plugin_is_pinned_in_the_revision(install: Install) -> None:
    install(PREPARE)
    survey = config(MINE)
    assert survey.as_json()["plugins"] == [{"name": "mine", "version": "1.2"}]
    assert survey.spec_sha256 != config(("mine", "1.3")).spec_sha256
    _, plugin = Plugins().of(survey)
    assert (plugin.name, plugin.version, plugin.hooks) == ("mine", "1.2", ("prepare_metadata",))


@pytest.mark.parametrize(
    ("named", "code", "word"),
    [
        (("other", "1"), "plugin_missing", "wallaby"),
        (("mine", "1.3"), "plugin_version", "1.2 is installed"),
        (("wallaby", "9"), "plugin_version", "1 is installed"),
    ],
)
def test_a_plugin_that_is_not_there_can_be_installed(
    install: Install, named: tuple[str, str], code: str, word: str
) -> None:
    install(PREPARE)
    error = failure(lambda: Plugins().of(config(named)), ConfigError)
    assert (error.code, error.retry) == (code, Retry.LATER)
    assert word in str(error)
    assert named[0] in error.message


def test_two_packages_that_bring_the_same_name_are_refused(install: Install) -> None:
    packages = [install(PREPARE), install(PREPARE)]
    error = failure(lambda: Plugins().of(config(MINE)), ConfigError)
    assert error.code == "plugin_ambiguous"
    assert all(package in error.hint for package in packages)


@pytest.mark.parametrize("body", ["raise RuntimeError('no')", "other = 1"])
def test_code_that_cannot_be_used_is_told_with_the_plugins_name(install: Install, body: str) -> None:
    install(body)
    error = failure(lambda: Plugins().of(config(MINE)), ConfigError)
    assert error.code == "plugin_unusable"
    assert "'mine' 1.2" in error.message


def test_only_plugins_that_are_named_are_imported(install: Install) -> None:
    install("raise SystemExit('imported')")
    assert Plugins().of(config()) == (WALLABY,)


def test_a_manifest_goes_through_its_hooks_and_expressions_are_computed_from_the_result(
    install: Install,
) -> None:
    install(
        """
        def manifest(self, config, records, manifest):
            assert "graph_overrides" not in manifest
            records.clear()
            manifest["extra"] = len(config.graph_patches)
            manifest["sources"][0]["sbids"][0]["datasets"].pop()
            return manifest

        def graph_patches(self, config, manifest, patches):
            extra = {"match": {"kind": "node_id", "id": "x"}, "fields": [{"name": "m", "value": manifest["extra"]}]}
            return [*patches, extra]
        """
    )
    manifest = made(MINE)
    assert manifest["extra"] == 1
    assert [one["fields"][0]["value"] for one in manifest["graph_overrides"]["patches"]] == [1, 1]
    assert len(RECORDS) == 2
    assert [one["fields"][0]["value"] for one in made()["graph_overrides"]["patches"]] == [2]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("def manifest(self, config, records, manifest): return []", "instead of an object"),
        ("def manifest(self, config, records, manifest): return {'sources': []}", "no list of objects"),
        (
            "def manifest(self, config, records, manifest): return {'sources': [{'sbids': []}]}",
            "no list of objects",
        ),
        ("def manifest(self, config, records, manifest): return {1, 2}", "no JSON"),
        (
            "def manifest(self, *given): return {'sources': [{'source_identifier': 'B', 'sbids': []}]}",
            "does not hold: B",
        ),
        ("def manifest(self, config, records, manifest): return 1 / 0", "ZeroDivisionError"),
        ("def graph_patches(self, config, manifest, patches): return None", "it gave no list"),
        (
            "def graph_patches(self, config, manifest, patches): return [{'match': {}, 'fields': []}]",
            "it gave no list",
        ),
        ("def graph_patches(self, config, manifest, patches): return [float('nan')]", "no JSON"),
    ],
)
def test_a_hook_that_breaks_its_promise_is_told_with_the_plugins_name(
    install: Install, body: str, word: str
) -> None:
    install(body)
    error = failure(lambda: made(MINE))
    assert error.code == "plugin_failed"
    assert "plug-in 'mine' 1.2" in error.message
    assert word in error.message
    assert error.details["plugin"] == "mine"


def test_an_error_of_the_plugins_own_keeps_its_code(install: Install) -> None:
    install(
        "def manifest(self, config, records, manifest): raise DataError('no beams', code='no_beams', hint='wait')"
    )
    error = failure(lambda: made(MINE))
    assert (error.code, error.hint) == ("no_beams", "wait")
    assert error.message == "plug-in 'mine' 1.2, manifest: no beams"


def test_rules_of_a_plugin_join_the_built_in_ones(install: Install) -> None:
    install(
        "rules = Rules({'mine': lambda sbid, rows: {'n': len(rows)}}, {}, {'bad': lambda row, record: 1 / 0})"
    )
    rules = rules_of(Plugins().of(config(MINE)))
    assert rules.row_choices["mine"]("1", [{}, {}]) == {"n": 2}
    assert set(BUILT_IN.row_choices) < set(rules.row_choices)
    assert failure(lambda: rules.record_fields["bad"]({}, {})).code == "plugin_failed"


def test_what_prepare_metadata_gives_is_signed_and_stored(stage: Stage, install: Install) -> None:
    install(PREPARE)
    stage.ready("A")
    before = stage.source("A").discovery_signature
    stage.add_survey(plugins=[{"name": "mine", "version": "1.2"}])
    stage.request("A")
    assert stage.source("A").discovery_signature != before
    (execution,) = stage.admit()
    manifest = stage.submit(execution, until="workflow_manifest").workflow_manifest
    assert manifest is not None
    assert manifest["sources"][0]["sbids"][0]["datasets"][0]["field"] == "FA"


@pytest.mark.parametrize(
    "body",
    [
        "def prepare_metadata(self, *arguments): raise KeyError('x')",
        "def prepare_metadata(self, *arguments): return None",
        "def prepare_metadata(self, *arguments): return PreparedMetadata([1], {})",
        "def prepare_metadata(self, *arguments): return PreparedMetadata([], [])",
        "def prepare_metadata(self, *arguments): return PreparedMetadata([{'a': object()}], {})",
    ],
)
def test_a_source_that_a_plugin_fails_on_is_a_failed_look_and_loses_nothing(
    stage: Stage, install: Install, body: str
) -> None:
    stage.ready("A")
    before = stage.source("A")
    install(body)
    stage.add_survey(plugins=[{"name": "mine", "version": "1.2"}])
    (report,) = stage.request("A")
    assert "plug-in 'mine' 1.2" in report.failed["A"]
    after = stage.source("A")
    assert (after.last_outcome, after.discovery_signature) == ("error", before.discovery_signature)


def test_an_execution_waits_for_a_plugin_that_is_gone(
    stage: Stage, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(PREPARE)
    stage.add_survey(plugins=[{"name": "mine", "version": "1.2"}])
    execution = stage.admitted("A")
    with monkeypatch.context() as gone:
        gone.setattr("beampipe_dagster.discovery.plugins.entry_points", lambda **_: [])
        assert failure(lambda: stage.do("workflow_manifest", execution), ConfigError).code == "plugin_missing"
    waiting = stage.execution()
    assert (waiting.status, waiting.last_error_code) == (Status.PENDING, "plugin_missing")
    stage.clock.advance(600)
    assert stage.do("workflow_manifest", execution).artifact is not None


def test_a_project_or_a_revision_whose_plugin_is_not_there_is_refused(
    stage: Stage, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = failure(lambda: stage.add_survey(plugins=[{"name": "mine", "version": "1.2"}]), ConfigError)
    assert missing.code == "plugin_missing"
    install(PREPARE)
    stage.add_survey(plugins=[{"name": "mine", "version": "1.2"}])
    stage.add_survey(plugins=[])
    platform = stage.platform
    service = RevisionService(ledger=platform.ledger, clock=platform.clock, ids=platform.ids)
    monkeypatch.setattr("beampipe_dagster.discovery.plugins.entry_points", lambda **_: [])
    refused = failure(lambda: service.activate(SURVEY, 2, actor="anna"), ConfigError)
    assert refused.code == "plugin_missing"
    assert not service.impact_of_version(SURVEY, 2).exact


def test_plugins_are_named_once_and_with_a_version() -> None:
    spec = survey_spec("0" * 64)
    for plugins, path, code in (
        ([{"name": "a", "version": " "}], "plugins[0].version", "required"),
        (
            [{"name": "a", "version": "1"}, {"name": "a", "version": "2"}],
            "plugins[1].name",
            "duplicate_plugin",
        ),
        ([{"name": "a"}], "plugins[0]", "invalid_config_structure"),
    ):
        report = validate_project(json.dumps({**spec, "plugins": plugins}))
        assert [(one.path, one.code) for one in report.errors] == [(path, code)]
    assert (
        load_project(json.dumps({**spec, "plugins": [{"name": "a", "version": "1"}]})).plugins[0].name == "a"
    )


def test_a_plugin_may_not_change_what_an_execution_is_about(stage: Stage, install: Install) -> None:
    install(
        """
        def manifest(self, config, records, manifest):
            manifest["sources"][0]["sbids"][0]["datasets"].pop()
            return manifest
        """
    )
    stage.add_survey(plugins=[{"name": "mine", "version": "1.2"}])
    stage.ready("A", beams=2)
    (execution,) = stage.admit()
    error = failure(lambda: stage.do("workflow_manifest", execution))
    assert error.code == "manifest_changed_scope"
    assert "1 missing" in error.message
    assert stage.execution(execution).status is Status.FAILED
    assert stage.daliuge.sessions == {}
