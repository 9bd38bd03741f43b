"""A TAP server that is not ours gives the same answers: at once, as jobs, with uploads, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.discovery.archive import Upload
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.discovery.batch_look import BatchLook
from beampipe_dagster.discovery.complete import complete_answer
from beampipe_dagster.discovery.look import SourceLook
from beampipe_dagster.discovery.tap import TapArchive
from beampipe_dagster.errors import ArchiveError
from beampipe_dagster.sandbox.archive.demo import load_demo
from beampipe_dagster.sandbox.archive.server import ArchiveServer
from beampipe_dagster.sandbox.archive.store import ArchiveStore
from beampipe_dagster_tests.support import dachs, debian

pytestmark = pytest.mark.integration

PROJECTS = Path(__file__).parents[2] / "projects"
CATALOGUE = {"ra_dec_vsys": 'FROM "VIII/73/hicat"'}
OBSERVED = (
    "SELECT obs_id, filename, s_ra, em_min, t_xel, thumbnail_id, access_estsize, obs_release_date"
    " FROM ivoa.obscore WHERE filename LIKE 'HIPASSJ13%' ORDER BY filename"
)


@dataclass(frozen=True)
class Both:
    """The sandbox archive and DaCHS, with the same rows."""

    ours: ArchiveServer
    theirs: dachs.Dachs

    def archive(self, *, ours: bool = False) -> TapArchive:
        """One of them."""
        url = self.ours.casda_url if ours else self.theirs.url
        return TapArchive(adapter="casda", url=url, timeout_seconds=120, retries=1, clock=SystemClock())

    def archives(self, *, ours: bool) -> TapArchives:
        """One of them, in the place of both archives of a survey."""
        urls = {"casda": self.theirs.url, "vizier": self.theirs.url}
        if ours:
            urls = {"casda": self.ours.casda_url, "vizier": self.ours.vizier_url}
        return TapArchives(urls=urls, clock=SystemClock(), environ={})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The same tables on both servers."""
    debian.need(dachs.unavailable())
    data = tmp_path_factory.mktemp("archive")
    ArchiveStore(data_dir=data)
    with dachs.running_dachs(data) as theirs, ArchiveServer(data) as ours:
        yield Both(ours, theirs)


def survey(*, ours: bool) -> ProjectConfig:
    """The demo survey; the catalogue has another name on DaCHS, which takes none in quotes."""
    value: Any = load_project((PROJECTS / "wallaby_demo/wallaby_demo.yaml").read_bytes()).as_json()
    for query in value["discovery"]["queries"]:
        if not ours and query["name"] in CATALOGUE:
            query["template"] = query["template"].replace(CATALOGUE[query["name"]], "FROM viz.hicat")
    return ProjectConfig.from_json(value)


def test_what_it_can_do_is_read_from_its_own_document(both: Both) -> None:
    said = both.archive().capabilities()
    assert (said.documented, said.upload, said.async_, said.default_maxrec) == (True, True, True, 20_000)
    assert {"ADQL-2.0", "ADQL-2.1"} <= set(said.languages)
    assert both.archive().availability()[0]


def test_an_answer_is_the_same_at_once_and_as_a_job_and_on_both_servers(both: Both) -> None:
    ours = both.archive(ours=True).query(OBSERVED)
    theirs = both.archive().query(OBSERVED)
    job = both.archive().query_async(OBSERVED)
    assert len(ours.rows) > 10
    assert theirs.rows == ours.rows
    assert job.rows == ours.rows
    assert theirs.typed() == ours.typed()
    assert isinstance(theirs.typed()[0]["t_xel"], int)
    assert theirs.typed()[0]["thumbnail_id"] is None
    assert (theirs.evidence.status_head, job.evidence.mode) == ("OK", "async")
    assert [phase for phase, _ in job.evidence.phases][-1] == "COMPLETED"


def test_the_newest_block_of_a_source_is_the_same_there(both: Both) -> None:
    mine = (
        "filename LIKE 'HIPASSJ1318-21%' AND obs_collection IN ('WALLABY', 'ASKAP Pilot Survey for WALLABY')"
    )
    newest = f"SELECT MAX(t_max) AS mx FROM ivoa.obscore WHERE {mine}"  # noqa: S608  # the test's own
    adql = (
        f"SELECT o.* FROM ivoa.obscore o INNER JOIN ({newest}) AS latest ON o.t_max = latest.mx"  # noqa: S608  # the same
        f" WHERE {mine} ORDER BY filename"
    )
    ours = both.archive(ours=True).query(adql)
    assert len(ours.rows) > 0
    assert both.archive().query(adql).rows == ours.rows
    files = "SELECT * FROM casda.observation_evaluation_file WHERE sbid = '{}' AND format = 'calibration'"
    block = files.format(str(ours.rows[0]["obs_id"]).removeprefix("ASKAP-"))
    calibrations = both.archive(ours=True).query(block)
    assert len(calibrations.rows) == 1
    assert both.archive().query(block).rows == calibrations.rows


def test_an_upload_is_joined_at_once_and_as_a_job(both: Both) -> None:
    names = [str(row["filename"]) for row in both.archive(ours=True).query(OBSERVED).rows]
    upload = Upload("mine", ("name",), tuple((name,) for name in names))
    adql = (
        "SELECT o.filename, o.obs_id FROM ivoa.obscore AS o JOIN TAP_UPLOAD.mine AS m"
        " ON o.filename = m.name ORDER BY o.filename"
    )
    ours = both.archive(ours=True).query(adql, upload=upload)
    assert [row["filename"] for row in ours.rows] == names
    assert both.archive().query(adql, upload=upload).rows == ours.rows
    assert both.archive().query_async(adql, upload=upload).rows == ours.rows


def test_what_overflows_at_once_is_whole_as_a_job(both: Both) -> None:
    whole = both.archive(ours=True).query(OBSERVED).rows
    answer = complete_answer(both.archive(), OBSERVED, maxrec=5)
    assert (answer.rows, answer.evidence.mode) == (whole, "async")


@pytest.mark.parametrize("mode", ["query", "query_async"])
def test_what_it_refuses_is_an_error_in_its_own_words(both: Both, mode: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        getattr(both.archive(), mode)("SELECT nothing FROM ivoa.obscore")
    assert caught.value.code == "archive_error"
    assert "nothing" in caught.value.message


def test_a_survey_sees_the_same_sources_there_one_by_one_and_in_batches(both: Both) -> None:
    names = [*(source.source_identifier for source in load_demo().sources), "HIPASSJ0000+00"]
    ours = BatchLook(config=survey(ours=True), archives=both.archives(ours=True), clock=SystemClock())
    expected = {look.source_identifier: look for look in ours.looks(names, known={})}
    theirs = BatchLook(config=survey(ours=False), archives=both.archives(ours=False), clock=SystemClock())
    together = {look.source_identifier: look for look in theirs.looks(names, known={})}
    assert sum(look.datasets for look in expected.values()) > 10
    one = SourceLook(config=survey(ours=False), archives=both.archives(ours=False), clock=SystemClock())
    for name in names:
        assert together[name].error is None
        assert together[name].metadata == expected[name].metadata
        assert together[name].signature == expected[name].signature
    for name in names[:4]:
        alone = one.look(name)
        assert (alone.signature, alone.metadata) == (expected[name].signature, expected[name].metadata)
