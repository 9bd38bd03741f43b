from __future__ import annotations

import hashlib

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import projects
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.tables import graph_documents, project_configs
from beampipe_dagster_tests.support.ledgers import START, SURVEY, add_survey


def test_a_new_revision_becomes_the_active_one_and_the_old_ones_stay(
    ledger: Ledger, ids: SequenceIds
) -> None:
    with ledger.begin() as conn:
        first = add_survey(conn, ids=ids, spec={"n": 1})
        second = add_survey(conn, ids=ids, spec={"n": 2})
        add_survey(conn, ids=ids, survey="another")
        assert projects.active(conn, SURVEY).id == second
        assert [projects.revision(conn, one).version for one in (first, second)] == [1, 2]
        assert projects.revision(conn, first).spec == {"n": 1}
        assert [one.project_id for one in projects.all_active(conn)] == ["another", SURVEY]


def test_the_database_refuses_two_active_revisions(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        first = add_survey(conn, ids=ids)
        add_survey(conn, ids=ids)
    with pytest.raises(IntegrityError), ledger.begin() as conn:
        conn.execute(sa.update(project_configs).where(project_configs.c.id == first).values(active=True))


def test_an_unknown_project_is_said_so_with_those_that_are_known(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        add_survey(conn, ids=ids)
        with pytest.raises(NotFoundError) as caught:
            projects.active(conn, "survy")
        assert caught.value.code == "project_not_found"
        assert SURVEY in caught.value.hint
        with pytest.raises(NotFoundError):
            projects.revision(conn, "nothing")


def test_the_same_graph_is_kept_once_and_comes_back_byte_for_byte(ledger: Ledger) -> None:
    raw = b'{ "nodeDataArray" : [] }\n'
    with ledger.begin() as conn:
        digest = projects.put_graph(conn, raw, name="one", now=START)
        assert digest == hashlib.sha256(raw).hexdigest()
        assert projects.put_graph(conn, raw, name="two", now=START) == digest
        assert projects.graph(conn, digest) == raw
        with pytest.raises(NotFoundError) as caught:
            projects.graph(conn, "0" * 64)
        assert caught.value.code == "graph_not_found"


def test_a_damaged_graph_is_found(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        digest = projects.put_graph(conn, b"{}", name="one", now=START)
        conn.execute(sa.update(graph_documents).values(content=b"rust"))
        with pytest.raises(NotFoundError) as caught:
            projects.graph(conn, digest)
    assert caught.value.code == "graph_damaged"
