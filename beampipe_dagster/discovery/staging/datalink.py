"""What a DataLink document says about bringing a file online (IVOA DataLink 1.1).

The document lists links of one dataset (section 3.2: ``service_def``, ``error_message``, ``semantics``) and describes
services in resources of type ``meta`` (section 4). CASDA adds a column ``authenticated_id_token``: the dataset's
identifier for this user, which is what the staging service takes as ``ID``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NoReturn

from lxml import etree

from beampipe_dagster.discovery.staging import xml
from beampipe_dagster.discovery.staging.redaction import hidden
from beampipe_dagster.errors import ArchiveError, Retry

ASYNC_SERVICE: Final = "async_service"
"""How CASDA calls the descriptor of its staging service."""

NO_ACCESS: Final = "staging_no_access"
_TOKEN: Final = "authenticated_id_token"  # noqa: S105  # the name of a column
_REFUSALS: Final = ("permission", "not authorized", "not authorised", "do not have access", "authenticat")


@dataclass(frozen=True, slots=True)
class StagingLink:
    """Where a file can be staged, and as what.

    Attributes
    ----------
    service_url
        ``accessURL`` of the service: where jobs are created.
    token
        The identifier to give it; it carries the user's rights and is as secret as a password.
    """

    service_url: str
    token: str = field(repr=False)


def read_datalink(body: bytes, *, name: str, service: str = ASYNC_SERVICE) -> StagingLink:
    """The staging service of a dataset, and its identifier for this user.

    Parameters
    ----------
    body
        The VOTable of a ``{links}`` endpoint.
    name
        The dataset, for messages.
    service
        ``ID`` of the service descriptor, and ``service_def`` of the row.

    Raises
    ------
    ArchiveError
        ``datalink_unreadable``; ``staging_no_access``: the archive says that this user may not have the file;
        ``datalink_fault``: it says another thing is wrong with it; ``datalink_no_service``;
        ``datalink_no_token``: the answer is the one for somebody who is not logged in.
    """
    try:
        root = xml.parse(body)
    except xml.UnreadableXmlError as error:
        raise ArchiveError(
            f"the DataLink answer for {name} is no XML document: {hidden(str(error))[:200]}",
            code="datalink_unreadable",
            hint="the archive may be under maintenance; it is asked again later",
        ) from error
    rows = _rows(root, name)
    wanted = [row for row in rows if row.get("service_def") == service]
    token = next((row[_TOKEN] for row in wanted if row.get(_TOKEN)), "")
    if not token:
        _refuse(rows, wanted, name=name, service=service)
    return StagingLink(_access_url(root, name=name, service=service), token)


def _rows(root: etree._Element, name: str) -> list[dict[str, str]]:
    """The rows of the links, by the names of their columns in lower case."""
    results = [one for one in xml.all_of(root, "RESOURCE") if (one.get("type") or "results") == "results"]
    rows: list[dict[str, str]] = []
    for table in (table for resource in results for table in xml.all_of(resource, "TABLE")):
        columns = [str(one.get("name") or "").lower() for one in xml.all_of(table, "FIELD")]
        if any(True for kind in ("BINARY", "BINARY2", "FITS") for _ in xml.all_of(table, kind)):
            raise ArchiveError(
                f"the DataLink answer for {name} is not in the TABLEDATA form",
                code="datalink_unreadable",
                retry=Retry.NEVER,
                hint="the access_url of the archive's rows must lead to a DataLink service as CASDA has it",
            )
        for row in xml.all_of(table, "TR"):
            cells = [xml.text_of(cell) for cell in row if xml.local(cell) == "TD"]
            rows.append(dict(zip(columns, cells, strict=False)))
    return rows


def _refuse(rows: list[dict[str, str]], wanted: list[dict[str, str]], *, name: str, service: str) -> NoReturn:
    """Say why there is no token."""
    said = next((row["error_message"] for row in rows if row.get("error_message")), "")
    shown = hidden(said)[:300]
    if any(words in said.lower() for words in _REFUSALS):
        raise ArchiveError(
            f"the archive does not let this user have {name}: {shown}",
            code=NO_ACCESS,
            retry=Retry.NEVER,
            hint="ask the archive for access to the project's data, or leave the scheduling block out",
        )
    if said:
        # DataLink 1.1 section 3.4: TransientFault is the one that may go away by itself.
        passing = said.lower().startswith("transient")
        raise ArchiveError(
            f"the archive has a fault for {name}: {shown}",
            code="datalink_fault",
            retry=Retry.LATER if passing else Retry.NEVER,
            hint="see the archive's own message; a new discovery shows whether it still has the file",
        )
    if wanted:
        raise ArchiveError(
            f"the DataLink answer for {name} has no {_TOKEN}: it is the one for somebody who is not logged in",
            code="datalink_no_token",
            hint="see that CASDA_USERNAME and CASDA_PASSWORD are those of an OPAL account with access",
        )
    raise ArchiveError(
        f"the DataLink answer for {name} offers no {service}",
        code="datalink_no_service",
        retry=Retry.NEVER,
        hint="the file cannot be staged; see the access_url of the archive's row",
    )


def _access_url(root: etree._Element, *, name: str, service: str) -> str:
    for resource in xml.all_of(root, "RESOURCE"):
        if resource.get("ID") == service:
            parameters = (one for one in xml.all_of(resource, "PARAM") if one.get("name") == "accessURL")
            url = next((str(one.get("value") or "").strip() for one in parameters), "")
            if url.startswith(("http://", "https://")):
                return url
    raise ArchiveError(
        f"the DataLink answer for {name} does not describe its {service} (a PARAM accessURL)",
        code="datalink_no_service",
        retry=Retry.NEVER,
        hint="the file cannot be staged; see the access_url of the archive's row",
    )
