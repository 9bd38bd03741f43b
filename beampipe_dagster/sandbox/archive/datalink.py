"""Login and DataLink of the sandbox archive, as CASDA has them (IVOA DataLink 1.1).

``/casda/login`` checks a user by HTTP basic authentication and gives a cookie. ``/casda/datalink/links?ID=...`` lists
what can be had of a file, with a token for the staging service that is another one each time.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from beampipe_dagster.errors import InputError
from beampipe_dagster.sandbox.archive.adql import Deadline, QueryEngine

COOKIE: Final = "casda_session"
USER: Final = "sandbox"
PASSWORD: Final = "sandbox"  # noqa: S105  # of a sandbox that holds no data

_ID: Final = re.compile(r"(?:scan-[0-9]{1,12}-[0-9]{1,12}|evaluation-[0-9]{1,12})")
_LOOKUP_SECONDS: Final = 10.0
_COLUMNS: Final = (
    "ID",
    "access_url",
    "service_def",
    "error_message",
    "description",
    "semantics",
    "content_type",
    "content_length",
    "authenticated_id_token",
)


@dataclass(slots=True)
class StagingScript:
    """How the staging service behaves; changed by ``PUT /sandbox/staging``.

    Attributes
    ----------
    username, password
        Who may log in.
    delay_seconds
        How long a job works.
    phases
        What it says meanwhile, one after the other for the same share of the time.
    errors
        How many of the next jobs end as ``ERROR``.
    error_text
        What those say.
    form
        ``href`` (UWS 1.1, quoted once more as CASDA does) or ``reference``.
    valid_seconds
        How long the URLs of a job are good, from its end on.
    lists
        Whether the service shows a list of its jobs.
    no_access
        Identifiers of files that nobody may have.
    lose_answers
        How many of the next creations are done, and answered with a closed connection.
    forget_sessions
        How many of the next DataLink requests are answered as if nobody had logged in.
    """

    username: str = USER
    password: str = PASSWORD
    delay_seconds: float = 1.0
    phases: list[str] = field(default_factory=lambda: ["QUEUED", "EXECUTING"])
    errors: int = 0
    error_text: str = "The files could not be brought online."
    form: str = "href"
    valid_seconds: int = 604_800
    lists: bool = True
    no_access: list[str] = field(default_factory=list)
    lose_answers: int = 0
    forget_sessions: int = 0

    def update(self, values: object) -> None:
        """Change some of it.

        Raises
        ------
        InputError
            ``invalid_staging``.
        """
        if not isinstance(values, dict):
            raise _invalid("the switches", "Send a JSON object.")
        for name, value in values.items():
            current = getattr(self, name, None) if name in type(self).__slots__ else None
            kinds = (int, float) if isinstance(current, float) else (type(current),)
            if current is None or isinstance(value, bool) != isinstance(current, bool):
                raise _invalid(str(name)[:60], f"Switches: {', '.join(type(self).__slots__)}.")
            if not isinstance(value, kinds):
                raise _invalid(str(name)[:60], f"Send a value like {current!r}.")
            setattr(self, name, value)


class Tokens:
    """Which token stands for which file."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, str]] = {}

    def make(self, file_id: str, name: str) -> str:
        """A token that nobody has had yet."""
        token = secrets.token_urlsafe(48)
        self._files[token] = (file_id, name)
        return token

    def file(self, token: str) -> tuple[str, str] | None:
        """A token's file: its identifier and its name."""
        return self._files.get(token)


class DatalinkService:
    """Login and links.

    Parameters
    ----------
    engine
        Looks up the names of files.
    script
        How to behave.
    tokens
        Shared with the staging service.
    """

    def __init__(self, *, engine: QueryEngine, script: StagingScript, tokens: Tokens) -> None:
        self._engine = engine
        self._script = script
        self._tokens = tokens
        self._sessions: set[str] = set()
        self.logins = 0
        self.refused = 0

    def routes(self) -> list[Route]:
        """Below the archive's own root."""
        return [
            Route("/login", self._login, methods=["GET"]),
            Route("/datalink/links", self._links, methods=["GET"]),
        ]

    async def _login(self, request: Request) -> Response:
        if not self._is_user(request):
            self.refused += 1
            return _unauthorized()
        self.logins += 1
        session = secrets.token_urlsafe(24)
        self._sessions.add(session)
        response = PlainTextResponse("available\n")
        response.set_cookie(COOKIE, session, httponly=True)
        return response

    async def _links(self, request: Request) -> Response:
        script = self._script
        if script.forget_sessions > 0:
            script.forget_sessions -= 1
            self._sessions.clear()
            return _unauthorized()
        if request.cookies.get(COOKIE) not in self._sessions:
            return _unauthorized()
        file_id = request.query_params.get("ID", "")
        name = await to_thread.run_sync(self._name_of, file_id)
        if name is None:
            return _document([_error(file_id, "NotFoundFault: there is no such file")])
        if file_id in script.no_access:
            fault = "DefaultFault: Sorry, but you do not have permission to access this data product"
            return _document([_error(file_id, fault)])
        url = request.url
        root = f"{url.scheme}://{url.netloc}/casda/data"
        rows = [
            {"ID": file_id, "access_url": f"{root}/sync?id={file_id}", "semantics": "#this"},
            {
                "ID": file_id,
                "service_def": "async_service",
                "description": "Scripted file access via Web",
                "semantics": "#this",
                "authenticated_id_token": self._tokens.make(file_id, name),
            },
        ]
        return _document(rows, service_url=f"{root}/async")

    def _name_of(self, file_id: str) -> str | None:
        if not _ID.fullmatch(file_id):
            return None
        if file_id.startswith("evaluation-"):
            number = file_id.removeprefix("evaluation-")
            query = f"SELECT filename FROM casda.observation_evaluation_file WHERE id = {number}"  # noqa: S608  # digits
        else:
            query = f"SELECT filename FROM ivoa.obscore WHERE obs_publisher_did = '{file_id}'"  # noqa: S608  # see _ID
        answer = self._engine.run(query, maxrec=1, deadline=Deadline(_LOOKUP_SECONDS))
        return str(answer.rows[0][0]) if answer.rows else None

    def _is_user(self, request: Request) -> bool:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        try:
            user, _, password = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        wanted = (self._script.username, self._script.password)
        return kind.lower() == "basic" and (user, password) == wanted


def _unauthorized() -> Response:
    headers = {"WWW-Authenticate": 'Basic realm="Sandbox OPAL Login"'}
    return PlainTextResponse("Who are you?\n", 401, headers=headers)


def _error(file_id: str, message: str) -> dict[str, str]:
    return {"ID": file_id, "error_message": message, "semantics": "#error"}


def _document(rows: list[dict[str, str]], *, service_url: str | None = None) -> Response:
    fields = "".join(f'<FIELD datatype="char" arraysize="*" name="{name}"/>' for name in _COLUMNS)
    cells = "".join(
        "<TR>" + "".join(f"<TD>{escape(row.get(name, ''))}</TD>" for name in _COLUMNS) + "</TR>"
        for row in rows
    )
    service = ""
    if service_url is not None:
        service = (
            '<RESOURCE type="meta" ID="async_service" utype="adhoc:service">'
            '<PARAM name="standardID" datatype="char" arraysize="*" value="ivo://ivoa.net/std/SODA#async-1.0"/>'
            f'<PARAM name="accessURL" datatype="char" arraysize="*" value={quoteattr(service_url)}/>'
            '<GROUP name="inputParams"><PARAM name="ID" datatype="char" arraysize="*" value="" '
            'ref="authenticated_id_token"/></GROUP></RESOURCE>'
        )
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<VOTABLE xmlns="http://www.ivoa.net/xml/VOTable/v1.3" version="1.3"><RESOURCE type="results">'
        f"<TABLE>{fields}<DATA><TABLEDATA>{cells}</TABLEDATA></DATA></TABLE></RESOURCE>{service}</VOTABLE>\n"
    )
    return Response(body, media_type="application/x-votable+xml;content=datalink")


def _invalid(name: str, hint: str) -> InputError:
    details: dict[str, Any] = {"field": name}
    return InputError(f"{name} cannot be used.", code="invalid_staging", hint=hint, details=details)
