"""Results of staging jobs, DataLink documents, and scans."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from beampipe_dagster.discovery.staging.datalink import read_datalink
from beampipe_dagster.discovery.staging.results import read_results, scan_of, sorted_urls
from beampipe_dagster_tests.golden.runner import Case, Deviation

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue

_MAPS = ("data", "checksum", "eval", "eval_checksum")


def results(value: JsonValue) -> JsonValue:
    """``{xml}`` -> ``{data, checksum, eval, eval_checksum}``: URLs by scan, and by file name."""
    found = sorted_urls(read_results(cast("dict[str, str]", value)["xml"].encode(), name="a job"))
    maps = (found.data, found.checksum, found.evaluation, found.evaluation_checksum)
    return {name: dict(urls) for name, urls in zip(_MAPS, maps, strict=True)}


def datalink(value: JsonValue) -> JsonValue:
    """``{xml, service}`` -> ``[access URL of the service, token of the file]``."""
    case = cast("dict[str, str]", value)
    link = read_datalink(case["xml"].encode(), name="a file", service=case["service"])
    return [link.service_url, link.token]


def scan(value: JsonValue) -> JsonValue:
    """``{did}`` -> the scan in a publisher's identifier, or null."""
    return scan_of(cast("dict[str, str]", value)["did"])


def _has_href(case: Case) -> bool:
    return case.fn == "uws" and re.search(r"\bhref\s*=", _xml(case)) is not None


def _reads_href(case: Case, got: JsonValue) -> bool:
    """All that was known is there, and every visibility that the document names too."""
    answer, expected = _answer(got), _answer(case.expected)
    kept = all(expected[name].items() <= answer[name].items() for name in ("data", "checksum"))
    named = set(re.findall(r"\bid\s*=\s*[\"']visibility-([^\"'.]+)[\"']", _xml(case)))
    return kept and named == set(answer["data"])


def _has_other_files(case: Case) -> bool:
    """Results that are no calibration archives are among them, or file names with the queries of their URLs."""
    if case.fn != "uws":
        return False
    expected = _answer(case.expected)
    others = {*expected["data"].values(), *expected["checksum"].values()}
    listed = {**expected["eval"], **expected["eval_checksum"]}
    return any(url in others or "?" in name for name, url in listed.items())


def _only_archives(case: Case, got: JsonValue) -> bool:
    answer, expected = _answer(got), _answer(case.expected)
    others = {*expected["data"].values(), *expected["checksum"].values()}
    wanted = {
        name: {
            re.sub(r"\.checksum$", "", key.partition("?")[0]): url
            for key, url in expected[name].items()
            if url not in others
        }
        for name in ("eval", "eval_checksum")
    }
    same = all(answer[name] == expected[name] for name in ("data", "checksum"))
    return same and all(answer[name] == wanted[name] for name in wanted)


def _answer(value: JsonValue) -> dict[str, dict[str, str]]:
    return cast("dict[str, dict[str, str]]", value)


def _xml(case: Case) -> str:
    return str(cast("dict[str, Any]", case.input)["xml"])


FUNCTIONS = {"uws": results, "datalink": datalink, "scan_id": scan}
DEVIATIONS = [
    Deviation(
        name="results by xlink:href",
        reason="UWS 1.1 gives the place of a result as xlink:href, and so does CASDA",
        applies=_has_href,
        agrees=_reads_href,
    ),
    Deviation(
        name="calibration archives by id",
        reason="a visibility is no calibration archive, and the query of a signed URL is no part of a file's name",
        applies=_has_other_files,
        agrees=_only_archives,
    ),
]
