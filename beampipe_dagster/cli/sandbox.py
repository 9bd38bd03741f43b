"""``beampipe sandbox``: the archive of the sandbox, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import click
import httpx
from rich.console import Console

from beampipe_dagster.cli.core import Context, Group, pass_context
from beampipe_dagster.cli.render import cell, emit, facts, number, table
from beampipe_dagster.errors import ArchiveError, BeampipeError, InputError, NotFoundError
from beampipe_dagster.sandbox.terminal import shortened

DEFAULT_URL: Final = "http://127.0.0.1:8190"
TIMEOUT_SECONDS: Final = 30.0
ARCHIVES: Final = ("casda", "vizier")
QUALITIES: Final = ("GOOD", "UNCERTAIN", "BAD", "REJECTED", "NOT_VALIDATED")
_QUERY: Final = 80


@click.group(cls=Group)
def sandbox() -> None:
    """The sandbox archive: put data in, make it fail, see what it is asked."""


def _url(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.startswith(("http://", "https://")):
        raise click.BadParameter("an http:// or https:// URL is needed")
    return value


URL = click.option(
    "--archive-url",
    callback=_url,
    metavar="URL",
    help=f"The archive; default from BEAMPIPE_CASDA_TAP_URL, else {DEFAULT_URL}.",
)


class Archive:
    """The HTTP interface of a sandbox archive.

    Parameters
    ----------
    url
        Its base URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def call(self, method: str, path: str, *, body: object = None) -> Any:  # noqa: ANN401  # any JSON
        """One request; the JSON of its answer.

        Raises
        ------
        ArchiveError
            ``sandbox_unreachable``, or ``sandbox_answer`` when something else answers there.
        BeampipeError
            What the archive says is wrong.
        """
        try:
            # These are processes of this machine: no proxy is between us.
            answer = httpx.request(
                method,
                f"{self.url}{path}",
                json=body,
                timeout=TIMEOUT_SECONDS,
                trust_env=False,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ArchiveError(
                f"the sandbox archive at {self.url} cannot be reached: {error}",
                code="sandbox_unreachable",
                hint="start it with: beampipe up, or say where it is with --archive-url",
            ) from error
        try:
            document = answer.json()
        except ValueError:
            document = None
        if answer.is_success and document is not None:
            return document
        told = document.get("error") if isinstance(document, dict) else None
        if isinstance(told, dict) and "message" in told:
            raise _error(answer.status_code, told)
        raise ArchiveError(
            f"{self.url}{path} answers {answer.status_code}, and not as a sandbox archive does",
            code="sandbox_answer",
            hint="is something else at this URL? Say where the sandbox archive is with --archive-url",
        )


def _error(status: int, told: Mapping[str, Any]) -> BeampipeError:
    kinds = {400: InputError, 404: NotFoundError}
    details = told.get("details")
    return kinds.get(status, ArchiveError)(
        str(told["message"]),
        code=str(told.get("code") or "sandbox_error"),
        hint=str(told.get("hint") or ""),
        details=details if isinstance(details, dict) else None,
    )


def archive_of(context: Context, url: str | None) -> Archive:
    """The archive at ``url``, else where CASDA's TAP service is set, else where ``beampipe up`` puts it."""
    if url is None:
        tap = context.settings.archive_urls.get("casda")
        parts = urlsplit(tap) if tap else None
        url = f"{parts.scheme}://{parts.netloc}" if parts else DEFAULT_URL
    return Archive(url)


@sandbox.command("deposit")
@click.argument("name", metavar="SOURCE")
@click.option("-p", "--project", "project_id", metavar="NAME", help="Also ask this survey to look at it now.")
@click.option("--sbid", type=int, help="Scheduling block; the next free one without it.")
@click.option("--beams", type=int, default=1, show_default=True, help="Files of the block.")
@click.option(
    "--quality", type=click.Choice(QUALITIES, case_sensitive=False), default="GOOD", show_default=True
)
@click.option("--count", type=int, default=1, show_default=True, help="Scheduling blocks in a row.")
@URL
@pass_context
def deposit(
    context: Context,
    name: str,
    project_id: str | None,
    sbid: int | None,
    beams: int,
    quality: str,
    count: int,
    archive_url: str | None,
) -> None:
    """Add an observation of SOURCE to the CASDA-like archive."""
    archive = archive_of(context, archive_url)
    body: dict[str, object] = {
        "source_identifier": name,
        "beams": beams,
        "quality": quality.upper(),
        "count": count,
    }
    if sbid is not None:
        body["sbid"] = sbid
    if project_id is not None:
        # Before anything is deposited: a survey that does not know the source must not find out afterwards.
        _check_registered(context, project_id, name)
    answer = archive.call("POST", "/sandbox/deposits", body=body)
    data: dict[str, Any] = dict(answer)
    if project_id is not None:
        registry = context.platform.registry
        data["marked"] = registry.mark_for_discovery(project_id, [name], actor=context.actor)

    def people(out: Console) -> None:
        blocks = ", ".join(f"SB{block}" for block in data["sbids"])
        out.print(f"Deposited {number(len(data['files']), 'file')} of {name} in {blocks}:")
        for item in data["files"]:
            out.print(f"  {item['filename']}  {item['quality']}")
        if project_id is not None:
            words = (
                "looks at it at its next discovery tick"
                if data["marked"]
                else "does not look: it is disabled"
            )
            out.print(f"{project_id} {words}.")
        else:
            out.print(
                f"A survey finds it when it next looks; now with: beampipe source discover -p SURVEY {name}",
                soft_wrap=True,
            )

    emit(context, data, people)


def _check_registered(context: Context, project_id: str, name: str) -> None:
    from beampipe_dagster.ledger import projects, sources  # noqa: PLC0415  # only with -p

    with context.ledger.read() as conn:
        projects.active(conn, project_id)
        sources.get(conn, project_id, name)


@sandbox.group("faults", cls=Group)
def faults() -> None:
    """Switches that make the archives fail as real ones do."""


@faults.command("show")
@URL
@pass_context
def show_faults(context: Context, archive_url: str | None) -> None:
    """The switches that are on."""
    data = archive_of(context, archive_url).call("GET", "/sandbox/faults")
    emit(context, {"faults": data}, lambda out: _show_faults(out, data))


@faults.command("set")
@click.argument("name", metavar="ARCHIVE", type=click.Choice(ARCHIVES))
@click.option("--latency", type=float, help="Seconds before an answer, 0 to 300.")
@click.option("--error-rate", type=float, help="Share of the queries that are hit, 0 to 1; alone, HTTP 500.")
@click.option("--seed", type=int, help="Hits the same queries each time.")
@click.option("--status", type=int, help="Answer with this HTTP status, 400 to 599.")
@click.option("--retry-after", type=int, help="Seconds of Retry-After with status 503.")
@click.option("--busy", is_flag=True, default=None, help="An error document: too busy.")
@click.option("--overflow", type=int, help="Cut answers after this many rows and say OVERFLOW.")
@click.option("--empty", is_flag=True, default=None, help="Complete answers without rows.")
@click.option("--html", is_flag=True, default=None, help="A page for people instead of a table.")
@click.option("--truncated", is_flag=True, default=None, help="Stop in the middle of the answer.")
@click.option("--down", is_flag=True, default=None, help="Close the connection without an answer.")
@click.option("--count", type=int, help="Queries to hit before the switches go off.")
@URL
@pass_context
def set_faults(context: Context, /, name: str, archive_url: str | None, **switches: object) -> None:
    """Set the switches of ARCHIVE (casda, vizier); those that are not given go off."""
    given = {switch: value for switch, value in switches.items() if value is not None}
    if not given:
        raise click.UsageError("give at least one switch", ctx=click.get_current_context())
    data = archive_of(context, archive_url).call("PUT", f"/sandbox/faults/{name}", body=given)
    emit(context, {"archive": name, "faults": data}, lambda out: _show_faults(out, {name: data}))


@faults.command("clear")
@click.argument("name", metavar="[ARCHIVE]", required=False, type=click.Choice(ARCHIVES))
@URL
@pass_context
def clear_faults(context: Context, name: str | None, archive_url: str | None) -> None:
    """Turn the switches off, of one archive or of both."""
    path = f"/sandbox/faults/{name}" if name else "/sandbox/faults"
    data = archive_of(context, archive_url).call("DELETE", path)
    emit(context, {"faults": data}, lambda out: _show_faults(out, data))


def _show_faults(out: Console, found: Mapping[str, Mapping[str, Any]]) -> None:
    pairs: list[tuple[str, object]] = []
    for name, switches in found.items():
        on = [
            switch.replace("_", " ") if value is True else f"{switch.replace('_', ' ')} {value}"
            for switch, value in switches.items()
        ]
        pairs.append((name, cell(", ".join(on), "yellow") if on else cell("well behaved", "green")))
    out.print(facts(pairs))


@sandbox.command("log")
@click.option("--archive", "name", type=click.Choice(ARCHIVES), help="One archive only.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Newest at most.")
@URL
@pass_context
def log(context: Context, name: str | None, limit: int, archive_url: str | None) -> None:
    """The last queries, and what became of them."""
    path = f"/sandbox/log?archive={name}" if name else "/sandbox/log"
    data = archive_of(context, archive_url).call("GET", path)
    requests = data["requests"][-limit:]

    def people(out: Console) -> None:
        if not requests:
            out.print("No query yet.")
            return
        fixed = {"no_wrap": True}
        right = {"justify": "right", "no_wrap": True}
        rows = table(
            ("time (UTC)", fixed),
            ("archive", fixed),
            ("how", fixed),
            ("rows", right),
            ("took", right),
            ("status", fixed),
            ("query", {"ratio": 1}),
        )
        rows.expand = True
        for item in requests:
            rows.add_row(
                cell(str(item["time"])[11:19]),
                cell(item["archive"]),
                cell(item["kind"]),
                cell(item["rows"]),
                f"{item['seconds'] * 1000:.0f} ms",
                cell(item["status"], "green" if item["status"] == "ok" else "yellow"),
                cell(shortened(item["query"], _QUERY)),
            )
        out.print(rows)
        out.print(cell(f"{number(data['total'], 'query', 'queries')} in all.", "dim"))

    emit(context, {"total": data["total"], "requests": requests}, people)
