from __future__ import annotations

import pytest

from beampipe_dagster.discovery.staging.datalink import read_datalink
from beampipe_dagster.errors import ArchiveError, Retry

SERVICE = """<RESOURCE type="meta" ID="async_service" utype="adhoc:service">
  <PARAM name="standardID" datatype="char" arraysize="*" value="ivo://ivoa.net/std/SODA#async-1.0"/>
  <PARAM name="accessURL" datatype="char" arraysize="*" value="https://h/data/async"/></RESOURCE>"""
FIELDS = ("ID", "service_def", "error_message", "authenticated_id_token")


def document(*rows: tuple[str, ...], service: str = SERVICE, prefix: str = "") -> bytes:
    p = f"{prefix}:" if prefix else ""
    name = f":{prefix}" if prefix else ""
    fields = "".join(f'<{p}FIELD name="{one}" datatype="char" arraysize="*"/>' for one in FIELDS)
    cells = "".join(
        f"<{p}TR>" + "".join(f"<{p}TD>{cell}</{p}TD>" for cell in row) + f"</{p}TR>" for row in rows
    )
    if prefix:
        service = (
            service.replace("<RES", f"<{p}RES").replace("</RES", f"</{p}RES").replace("<PAR", f"<{p}PAR")
        )
    return (
        f'<?xml version="1.0"?>\n<{p}VOTABLE xmlns{name}="http://www.ivoa.net/xml/VOTable/v1.3">'
        f'<{p}RESOURCE type="results"><{p}TABLE>{fields}<{p}DATA><{p}TABLEDATA>{cells}</{p}TABLEDATA></{p}DATA>'
        f"</{p}TABLE></{p}RESOURCE>{service}</{p}VOTABLE>"
    ).encode()


def refused(body: bytes) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        read_datalink(body, name="file.tar")
    assert "file.tar" in caught.value.message
    return caught.value


@pytest.mark.parametrize("prefix", ["", "vot"])
def test_the_service_and_the_token_are_found_whatever_the_namespace_is_called(prefix: str) -> None:
    rows = [("1", "", "", ""), ("1", "cutout_service", "", "no"), ("1", "async_service", "", " tok ")]
    link = read_datalink(document(*rows, prefix=prefix), name="file.tar")
    assert (link.service_url, link.token) == ("https://h/data/async", "tok")
    assert "tok" not in repr(link)


def test_the_first_row_with_a_token_counts() -> None:
    rows = [("1", "async_service", "", ""), ("1", "async_service", "", "a"), ("1", "async_service", "", "b")]
    assert read_datalink(document(*rows), name="file.tar").token == "a"  # noqa: S105  # no secret


def test_a_refusal_of_the_archive_is_no_matter_of_trying_again() -> None:
    said = "DefaultFault: Sorry, but you do not have permission to access this data product"
    error = refused(document(("1", "", said, ""), service=""))
    assert (error.code, error.retry) == ("staging_no_access", Retry.NEVER)
    assert said in error.message


@pytest.mark.parametrize(
    ("said", "retry"),
    [("TransientFault: later", Retry.LATER), ("NotFoundFault: nothing of that name", Retry.NEVER)],
)
def test_another_fault_is_passed_on(said: str, retry: Retry) -> None:
    error = refused(document(("1", "", said, "")))
    assert (error.code, error.retry) == ("datalink_fault", retry)
    assert said in error.message


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "datalink_unreadable"),
        (b"<html><body>Maintenance", "datalink_unreadable"),
        (b'<!DOCTYPE x [<!ENTITY e "t">]><x>&e;</x>', "datalink_unreadable"),
        (document(("1", "async_service", "", "")), "datalink_no_token"),
        (document(("1", "cutout_service", "", "tok")), "datalink_no_service"),
        (document(), "datalink_no_service"),
        (document(("1", "async_service", "", "tok"), service=""), "datalink_no_service"),
        (
            document(("1", "async_service", "", "tok"), service=SERVICE.replace("https:", "ftp:")),
            "datalink_no_service",
        ),
        (document().replace(b"TABLEDATA", b"BINARY2"), "datalink_unreadable"),
    ],
)
def test_what_is_missing_has_a_name(body: bytes, code: str) -> None:
    assert refused(body).code == code
