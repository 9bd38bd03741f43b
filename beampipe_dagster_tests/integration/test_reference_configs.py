"""The configuration files of an existing system: they validate, load, and give a code location.

They are looked for in ``BEAMPIPE_REFERENCE_DIR``, else in ``shared/reference`` beside the repository; where
there are none, these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from beampipe_dagster.assembly import Platform, assemble
from beampipe_dagster.config.profile import RestRemote, SlurmRemote, load_profile
from beampipe_dagster.config.profile_report import validate_profile
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.config.validation import load_project, project_advice, validate_project
from beampipe_dagster.defs.build import build_definitions
from beampipe_dagster.defs.resources import FixedPlatform
from beampipe_dagster.errors import ConfigError
from beampipe_dagster.execution.profile_preview import preview
from beampipe_dagster.ledger import projects

REFERENCE: Final = Path(
    os.environ.get("BEAMPIPE_REFERENCE_DIR")
    or Path(__file__).resolve().parents[2].parent / "shared" / "reference"
)
CONFIG: Final = REFERENCE / "config"
WALLABY: Final = ("wallaby_hires.v2.yaml", "wallaby_hires_nodownloads.v2.yaml")
MINIMAL: Final = "examples/minimal_survey.v2.yaml"
REST, SLURM = "deployment_profile.dlg-dim.json", "deployment_profile.slurm-remote.json"
DIGESTS: Final = {
    WALLABY[0]: "010eeb64",
    WALLABY[1]: "50edc40e",
    MINIMAL: "0dfdb224",
}

pytestmark = pytest.mark.skipif(
    not CONFIG.is_dir(), reason="no reference configuration (set BEAMPIPE_REFERENCE_DIR)"
)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """A new ledger, in a home that has the graphs where the files look for them."""
    shutil.copytree(CONFIG / "graphs", tmp_path / "config" / "graphs")
    made = assemble(Settings.from_env({"BEAMPIPE_HOME": str(tmp_path)}))
    yield made
    made.ledger.dispose()


def with_profiles(platform: Platform) -> Platform:
    for name in (REST, SLURM):
        platform.projects.add_profile(CONFIG / name)
    return platform


def test_every_file_is_looked_at_here() -> None:
    found = {path.relative_to(CONFIG).as_posix() for path in CONFIG.rglob("*") if path.is_file()}
    known = {*WALLABY, MINIMAL, REST, SLURM, "shaping.200sources.env", "shaping.1000sources.env"}
    assert {name for name in found if not name.startswith(("graphs/", "LICENSE"))} == known


@pytest.mark.parametrize("name", [*WALLABY, MINIMAL])
def test_every_survey_is_valid_and_has_its_digest(name: str) -> None:
    text = (CONFIG / name).read_text()
    report = validate_project(text, name=name)
    assert (report.errors, report.warnings) == ((), ())
    assert report.spec_sha256.startswith(DIGESTS[name])
    assert load_project(text).spec_sha256 == report.spec_sha256


@pytest.mark.parametrize("name", WALLABY)
def test_nothing_about_the_wallaby_files_needs_advice(name: str) -> None:
    assert project_advice((CONFIG / name).read_text()) == ()


def test_the_minimal_survey_gets_the_advice_that_it_deserves() -> None:
    text = (CONFIG / MINIMAL).read_text()
    found = {item.code: item for item in project_advice(text, name=MINIMAL)}
    assert set(found) == {"sbid_not_mapped", "flag_on_primary_query"}
    lines = text.splitlines()
    assert "enrichments.visibility" in lines[(found["flag_on_primary_query"].line or 0) - 1]
    assert found["flag_on_primary_query"].path.endswith("discovery_flags.visibility_complete.from")
    assert "every look at a source fails" in found["sbid_not_mapped"].message


@pytest.mark.parametrize(("name", "kind"), [(REST, RestRemote), (SLURM, SlurmRemote)])
def test_both_profiles_are_valid_and_can_be_rendered(name: str, kind: type) -> None:
    text = (CONFIG / name).read_text()
    report = validate_profile(text, name=name)
    assert (report.errors, report.warnings) == ((), ())
    profile = load_profile(text)
    assert isinstance(profile.deployment, kind)
    shown = preview(profile)
    assert (shown.slurm is not None) is (kind is SlurmRemote)
    assert shown.calls


@pytest.mark.parametrize("name", ["200", "1000"])
def test_the_shaping_files_are_settings(name: str) -> None:
    lines = (CONFIG / f"shaping.{name}sources.env").read_text().splitlines()
    environ = dict(line.split("=", 1) for line in lines if line.strip() and not line.startswith("#"))
    settings = Settings.from_env({"HOME": "/home/anna", **environ})
    assert settings.tick_interval_seconds == 30
    assert (settings.discovery_max_in_flight, settings.execution_max_in_flight) == {
        "200": (8, 4),
        "1000": (24, 10),
    }[name]
    assert settings.source_concurrency == {"200": 3, "1000": 5}[name]
    assert settings.discovery_max_batches_per_tick == {"200": 50, "1000": 100}[name]


def test_a_wallaby_survey_needs_its_profile_first(platform: Platform) -> None:
    with pytest.raises(ConfigError) as caught:
        platform.projects.add_project(CONFIG / WALLABY[0], actor="test")
    assert caught.value.code == "profile_not_found"
    assert "slurm-remote" in caught.value.message
    with platform.ledger.read() as conn:
        assert projects.all_active(conn) == []


def test_all_of_them_load_into_one_ledger_and_give_their_asset_groups(platform: Platform) -> None:
    with_profiles(platform)
    versions = []
    for name in (*WALLABY, MINIMAL):
        added = platform.projects.add_project(CONFIG / name, actor="test")
        assert added.changed
        assert added.revision.spec_sha256.startswith(DIGESTS[name])
        versions.append((added.revision.project_id, added.revision.version))
        again = platform.projects.add_project(CONFIG / name, actor="test")
        assert (again.changed, again.revision.id) == (False, added.revision.id)
    assert versions == [("wallaby_hires", 1), ("wallaby_hires", 2), ("minimal_survey", 1)]
    definitions = build_definitions(FixedPlatform.of(platform))
    groups = {spec.group_name for spec in definitions.resolve_all_asset_specs()}
    assert {"wallaby_hires", "minimal_survey"} <= groups
    sensors = {sensor.name for sensor in definitions.get_repository_def().sensor_defs}
    assert {"wallaby_hires_scheduler_tick", "minimal_survey_scheduler_tick"} <= sensors
