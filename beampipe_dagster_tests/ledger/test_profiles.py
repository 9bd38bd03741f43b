from __future__ import annotations

from typing import Any

import pytest

from beampipe_dagster.errors import ConflictError, NotFoundError
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import profiles
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.profiles import StoredProfile
from beampipe_dagster_tests.support.ledgers import START, at_once


def put(ledger: Ledger, name: str, **values: Any) -> tuple[StoredProfile, bool]:
    fields: dict[str, Any] = {
        "project_module": None,
        "is_default": False,
        "max_concurrent_executions": None,
        "spec": {"name": name},
        "spec_sha256": "1" * 64,
    }
    with ledger.begin() as conn:
        return profiles.put(conn, profile_id=UuidIds().new(), name=name, now=START, **{**fields, **values})


def test_a_profile_counts_its_changes_and_the_same_content_is_none(ledger: Ledger) -> None:
    first, added = put(ledger, "local")
    assert (first.revision, added) == (1, True)
    assert put(ledger, "local") == (first, False)
    second, changed = put(ledger, "local", spec={"name": "local", "x": 1}, spec_sha256="2" * 64)
    assert (second.revision, changed, second.id, second.spec) == (
        2,
        True,
        first.id,
        {"name": "local", "x": 1},
    )


def test_the_named_profile_wins_then_the_projects_default_then_the_default_of_all(ledger: Ledger) -> None:
    put(ledger, "all", is_default=True)
    put(ledger, "own", project_module="survey", is_default=True)
    put(ledger, "named")
    with ledger.read() as conn:

        def name_of(name: str | None, project: str) -> str:
            return profiles.resolve(conn, name=name, project_module=project).name

        assert name_of("named", "survey") == "named"
        assert name_of(None, "survey") == "own"
        assert name_of(None, "another") == "all"


def test_an_unknown_name_is_an_error_and_never_the_default(ledger: Ledger) -> None:
    put(ledger, "all", is_default=True)
    with ledger.read() as conn, pytest.raises(NotFoundError) as caught:
        profiles.resolve(conn, name="al", project_module="survey")
    assert caught.value.code == "profile_not_found"
    assert "all" in caught.value.hint


def test_without_any_default_there_is_no_profile(ledger: Ledger) -> None:
    put(ledger, "own", project_module="another", is_default=True)
    with ledger.read() as conn, pytest.raises(NotFoundError) as caught:
        profiles.resolve(conn, name=None, project_module="survey")
    assert caught.value.code == "no_default_profile"


def test_the_profile_of_another_project_is_refused(ledger: Ledger) -> None:
    put(ledger, "theirs", project_module="another")
    with ledger.read() as conn, pytest.raises(ConflictError) as caught:
        profiles.resolve(conn, name="theirs", project_module="survey")
    assert caught.value.code == "profile_of_another_project"


def test_a_scope_has_one_default(ledger: Ledger) -> None:
    put(ledger, "first", is_default=True)
    put(ledger, "elsewhere", project_module="survey", is_default=True)
    with pytest.raises(ConflictError) as caught:
        put(ledger, "second", is_default=True)
    assert caught.value.code == "default_profile_exists"
    put(ledger, "first", is_default=False, spec_sha256="2" * 64)
    assert put(ledger, "second", is_default=True)[0].is_default


def test_of_two_defaults_added_at_once_one_is_refused(ledger: Ledger) -> None:
    done = at_once(lambda: put(ledger, "one", is_default=True), lambda: put(ledger, "two", is_default=True))
    assert sorted(type(one).__name__ for one in done) == ["ConflictError", "tuple"]


def test_the_same_profile_added_at_once_is_there_once(ledger: Ledger) -> None:
    done = at_once(*(lambda: put(ledger, "local") for _ in range(3)))
    assert sorted(one[1] for one in done if isinstance(one, tuple)) == [False, False, True]
