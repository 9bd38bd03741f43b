"""Settings: defaults, spellings, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from beampipe_dagster.config.settings import ArchiveLimits, Settings
from beampipe_dagster.errors import ConfigError


def test_without_variables_every_setting_has_its_default() -> None:
    settings = Settings.from_env({"HOME": "/home/astro"})
    assert settings.home == Path("/home/astro/.beampipe")
    assert settings.database_url == "sqlite:////home/astro/.beampipe/ledger.db"
    assert settings.archive_urls == {}
    assert (settings.tm_url, settings.dim_url) == (None, None)
    assert (settings.metrics_host, settings.metrics_port) == ("127.0.0.1", 9090)
    assert settings.source_concurrency == 5
    assert settings.execution_max_in_flight == 2
    assert settings.discovery_max_in_flight == 4
    assert settings.discovery_max_batches_per_tick == 4
    assert settings.discovery_vanish_recheck_minutes == 60
    assert settings.queue_max_depth == 200
    assert (settings.partition_retention_days, settings.partition_live_keys) == (30, 10_000)
    assert settings.lease_seconds == 60.0
    assert settings.submission_timeout_seconds == 1800
    assert settings.poll_interval_seconds == 5.0
    assert settings.tick_interval_seconds == 60
    assert settings.delete_sessions is False
    assert settings.allow_private_graph_urls is False
    assert settings.log_json is False


def test_an_archive_may_have_limits_of_its_own() -> None:
    environ = {
        "HOME": "/h",
        "BEAMPIPE_ARCHIVE_MAX_CONCURRENCY": "6",
        "BEAMPIPE_CASDA_TAP_MAX_CONCURRENCY": "2",
        "BEAMPIPE_VIZIER_TAP_MIN_INTERVAL_MS": "250",
    }
    settings = Settings.from_env(environ)
    assert settings.archive_limits == ArchiveLimits(max_concurrency=6, min_interval_ms=0)
    assert settings.limits_by_archive == {
        "casda": ArchiveLimits(max_concurrency=2, min_interval_ms=0),
        "vizier": ArchiveLimits(max_concurrency=6, min_interval_ms=250),
    }
    assert settings.archive_failures_to_open == 3
    with pytest.raises(ConfigError, match="BEAMPIPE_CASDA_TAP_MAX_CONCURRENCY"):
        Settings.from_env({"HOME": "/h", "BEAMPIPE_CASDA_TAP_MAX_CONCURRENCY": "0"})


def test_a_secret_is_read_from_its_variable_or_from_a_file_and_never_shown(tmp_path: Path) -> None:
    name, token = "BEAMPIPE_DALIUGE_AUTH_HEADER", "Authorization: Bearer t0ken"
    path = tmp_path / "header"
    path.write_text(f"{token}\n")
    for environ in ({name: token}, {f"{name}_FILE": str(path)}):
        settings = Settings.from_env({"HOME": "/h", **environ})
        assert settings.daliuge_auth_header == token
        assert "t0ken" not in repr(settings)
    with pytest.raises(ConfigError, match=f"{name}_FILE") as both:
        Settings.from_env({"HOME": "/h", name: token, f"{name}_FILE": str(path)})
    assert "t0ken" not in str(both.value.as_dict())
    with pytest.raises(ConfigError, match=f"{name}_FILE"):
        Settings.from_env({"HOME": "/h", f"{name}_FILE": str(tmp_path / "nothing")})
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=f"{name}_FILE"):
        Settings.from_env({"HOME": "/h", f"{name}_FILE": str(path)})


def test_certificates_are_in_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match="BEAMPIPE_DALIUGE_CA_FILE"):
        Settings.from_env({"HOME": "/h", "BEAMPIPE_DALIUGE_CA_FILE": str(path)})
    path.touch()
    settings = Settings.from_env({"HOME": "/h", "BEAMPIPE_DALIUGE_CA_FILE": str(path)})
    assert settings.daliuge_ca_file == path
    assert (settings.poll_stuck_seconds, settings.daliuge_auth_header) == (21_600.0, None)


def test_a_blank_variable_counts_as_unset() -> None:
    environ = {"HOME": "/h", "BEAMPIPE_LEASE_SECONDS": "  ", "BEAMPIPE_LOG_JSON": ""}
    assert Settings.from_env(environ) == Settings.from_env({"HOME": "/h"})


def test_a_relative_home_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_env({"BEAMPIPE_HOME": "state"})
    assert settings.home == tmp_path / "state"
    assert settings.database_url == f"sqlite:///{tmp_path}/state/ledger.db"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_bare_postgresql_url_is_given_its_driver(scheme: str) -> None:
    settings = Settings.from_env({"BEAMPIPE_DATABASE_URL": f"{scheme}://u:secret@db/ledger"})
    assert settings.database_url == "postgresql+psycopg2://u:secret@db/ledger"
    assert "secret" not in repr(settings)


def test_a_database_url_that_is_refused_does_not_show_its_password() -> None:
    with pytest.raises(ConfigError, match="BEAMPIPE_DATABASE_URL") as caught:
        Settings.from_env({"BEAMPIPE_DATABASE_URL": "mysql://u:secret@db/ledger"})
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value.details)


def test_every_tap_url_variable_names_an_archive() -> None:
    settings = Settings.from_env(
        {
            "BEAMPIPE_CASDA_TAP_URL": "https://casda.csiro.au/casda_vo_tools/tap",
            "BEAMPIPE_MY_SITE_TAP_URL": "http://127.0.0.1:8000/tap",
            "BEAMPIPE_EMPTY_TAP_URL": "",
            "OTHER_TAP_URL": "not looked at",
        }
    )
    assert settings.archive_urls == {
        "casda": "https://casda.csiro.au/casda_vo_tools/tap",
        "my_site": "http://127.0.0.1:8000/tap",
    }


@pytest.mark.parametrize("word", ["true", "1", "yes", "Y", " ON "])
def test_true_has_five_spellings(word: str) -> None:
    assert Settings.from_env({"BEAMPIPE_LOG_JSON": word}).log_json is True


@pytest.mark.parametrize("word", ["false", "0", "no", "N", " Off "])
def test_false_has_five_spellings(word: str) -> None:
    assert Settings.from_env({"BEAMPIPE_LOG_JSON": word}).log_json is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.0.0.0:80", ("0.0.0.0", 80)), ("[::1]:0", ("::1", 0)), ("host:65535", ("host", 65535))],
)
def test_the_metrics_address_is_a_host_and_a_port(text: str, expected: tuple[str, int]) -> None:
    settings = Settings.from_env({"BEAMPIPE_METRICS_BIND_ADDR": text})
    assert (settings.metrics_host, settings.metrics_port) == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BEAMPIPE_DISCOVERY_SOURCE_CONCURRENCY", "0"),
        ("BEAMPIPE_DISCOVERY_SOURCE_CONCURRENCY", "five"),
        ("BEAMPIPE_DISCOVERY_SOURCE_CONCURRENCY", "9" * 5000),
        ("BEAMPIPE_SHAPING_EXECUTION_MAX_IN_FLIGHT_RUNS", "-1"),
        ("BEAMPIPE_WORKER_SUBMISSION_TIMEOUT_SECONDS", "86401"),
        ("BEAMPIPE_WORKER_SUBMISSION_TIMEOUT_SECONDS", "1.5"),
        ("BEAMPIPE_SCHEDULER_INTERVAL_SECONDS", "1_0"),
        ("BEAMPIPE_LEASE_SECONDS", "0"),
        ("BEAMPIPE_LEASE_SECONDS", "nan"),
        ("BEAMPIPE_DIM_POLL_INTERVAL_SECONDS", "inf"),
        ("BEAMPIPE_DIM_POLL_INTERVAL_SECONDS", "soon"),
        ("BEAMPIPE_LOG_JSON", "treu"),
        ("BEAMPIPE_METRICS_BIND_ADDR", "9090"),
        ("BEAMPIPE_METRICS_BIND_ADDR", "::1:9090"),
        ("BEAMPIPE_METRICS_BIND_ADDR", "host:65536"),
        ("BEAMPIPE_TM_URL", "dlg-tm:8084"),
        ("BEAMPIPE_DIM_URL", "http://host:99999"),
        ("BEAMPIPE_CASDA_TAP_URL", "ftp://casda/tap"),
        ("BEAMPIPE_CASDA_TAP_URL", "http://[::1/tap"),
    ],
)
def test_a_bad_value_is_refused_with_its_variable_its_value_and_what_is_allowed(
    variable: str, value: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({variable: value})
    error = caught.value
    assert error.code == "invalid_setting"
    assert variable in error.message
    assert value[:70] in error.message
    assert error.details["allowed"] in error.hint


def test_private_addresses_of_graphs_are_allowed_by_a_variable_of_their_own() -> None:
    settings = Settings.from_env({"HOME": "/h", "BEAMPIPE_ALLOW_PRIVATE_GRAPH_URLS": "yes"})
    assert settings.allow_private_graph_urls is True
    with pytest.raises(ConfigError, match="BEAMPIPE_ALLOW_PRIVATE_GRAPH_URLS"):
        Settings.from_env({"HOME": "/h", "BEAMPIPE_ALLOW_PRIVATE_GRAPH_URLS": "perhaps"})
