from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from beampipe_dagster.config.settings import CASDA_LOGIN_URL, Settings
from beampipe_dagster.discovery.staging.options import Progress, StagingOptions
from beampipe_dagster.errors import ConfigError


def test_a_url_is_good_for_as_long_as_the_options_say() -> None:
    assert StagingOptions(min_validity_seconds=90.0).min_validity == timedelta(seconds=90)


@pytest.mark.parametrize(("notes", "done"), [((), True), (("visibility/7: its job is QUEUED",), False)])
def test_staging_is_done_when_nothing_is_waited_for(notes: tuple[str, ...], *, done: bool) -> None:
    assert Progress((), notes).done is done


def test_the_environment_says_where_and_how_patiently(tmp_path: Path) -> None:
    home = {"BEAMPIPE_HOME": str(tmp_path)}
    default = Settings.from_env(home)
    assert (default.casda_login_url, default.stage_by_sbid) == (CASDA_LOGIN_URL, True)
    given = Settings.from_env(
        {
            **home,
            "CASDA_LOGIN_URL": "https://h/login",
            "CASDA_STAGE_BY_SBID": "no",
            "BEAMPIPE_STAGING_PATIENCE_SECONDS": "5",
            "CASDA_PASSWORD": "canary",
        }
    )
    assert (given.casda_login_url, given.stage_by_sbid, given.staging_patience_seconds) == (
        "https://h/login",
        False,
        5.0,
    )
    assert "canary" not in repr(given)
    with pytest.raises(ConfigError):
        Settings.from_env({**home, "CASDA_STAGE_BY_SBID": "perhaps"})
