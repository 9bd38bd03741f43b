"""Rules over the parts of a project file that name nodes of a graph and archives.

They give places, codes and words; :mod:`beampipe_dagster.config.validation` makes diagnostics of them.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from beampipe_dagster.config.project import (
    MATCH_COUNTS,
    OWN_MATCH_FIELDS,
    UNKNOWN,
    AdapterDefinition,
    Adapters,
    GraphPatchMatch,
    ProjectConfig,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from beampipe_dagster.config.yaml_loader import Path

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SETTABLE: Final = re.compile(r"[A-Za-z0-9_]+")
_MATCH_FIELDS: Final = ("equals", "id", "name", "index", "category", "field", "value")
_BUILT_IN: Final = ("casda", "vizier")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, below the part that was looked at."""

    path: Path
    code: str
    message: str
    hint: str | None = None


def match_problems(match: GraphPatchMatch) -> Iterator[Problem]:
    """A patch's match: what its kind needs is there, and nothing else.

    An unknown kind is for the caller, who knows what the file says.
    """
    own = OWN_MATCH_FIELDS.get(match.kind)
    needed = ("equals",) if own is None else own
    for name in needed:
        value = getattr(match, name)
        if value is None or (isinstance(value, str) and not value.strip() and name != "value"):
            yield Problem((name,), "required", "must not be blank")
    given = [name for name in _MATCH_FIELDS if getattr(match, name) not in (None, "")]
    for name in given:
        if name not in needed:
            message = f"is no part of a match of kind {match.kind}"
            yield Problem((name,), "unexpected_match_field", message, f"It takes {' and '.join(needed)}.")
    if match.count == UNKNOWN:
        yield Problem(
            ("count",),
            "unknown_graph_patch_match_count",
            "must be one or many",
            f"Known here: {', '.join(MATCH_COUNTS)}.",
        )


def kind_hint(given: object) -> str | None:
    """What to do about a kind that was not given its own fields; ``None`` for a kind nobody knows."""
    own = OWN_MATCH_FIELDS.get(given) if isinstance(given, str) else None
    return None if own is None else f"A match of kind {given} is given by {' and '.join(own)}, not by equals."


def own_problems(config: ProjectConfig) -> Iterator[Problem]:
    """The parts that have no order among the other rules; the paths begin at the document."""
    for problem in adapter_problems(config.adapters):
        yield Problem(("adapters", *problem.path), problem.code, problem.message, problem.hint)
    names: set[str] = set()
    for index, plugin in enumerate(config.plugins):
        for field in ("name", "version"):
            if not getattr(plugin, field).strip():
                yield Problem(("plugins", index, field), "required", "must not be blank")
        if plugin.name in names:
            yield Problem(("plugins", index, "name"), "duplicate_plugin", f"{plugin.name!r} is named twice")
        names.add(plugin.name)


def adapter_problems(adapters: Adapters) -> Iterator[Problem]:
    """The TAP services that a survey names itself."""
    for name, defined in sorted(adapters.definitions.items()):
        for problem in _definition_problems(defined):
            path = ("definitions", name, *problem.path)
            yield Problem(path, problem.code, problem.message, problem.hint)
        if not name.strip():
            yield Problem(("definitions",), "required", "the name of an archive must not be blank")


def _definition_problems(defined: AdapterDefinition) -> Iterator[Problem]:
    fault = _url_fault(defined.tap_url) or _not_a_service(defined.tap_url)
    if fault:
        hint = "Give the service's base URL, such as https://casda.csiro.au/casda_vo_tools/tap."
        yield Problem(("tap_url",), "invalid_tap_url", fault, hint)
    for limit in ("maxrec", "timeout_seconds"):
        if getattr(defined, limit) == 0:
            yield Problem((limit,), "invalid_limit", "must be at least 1")
    auth = defined.auth_env
    if auth is None:
        return
    given = {name for name in ("user", "password", "token") if getattr(auth, name) is not None}
    if given not in ({"user", "password"}, {"token"}):
        message = "must name either user and password, or token"
        yield Problem(("auth_env",), "invalid_auth_env", message)
    for name in sorted(given):
        if not _VARIABLE.fullmatch(getattr(auth, name)):
            # The value is not shown: it may be the credential itself.
            message = "must be the name of an environment variable: letters, digits and _"
            hint = "Put the credential into the environment, and the variable's name here."
            yield Problem(("auth_env", name), "invalid_variable_name", message, hint)
    if not fault and not _private_way(defined.tap_url):
        message = "credentials would cross the network in clear text over http"
        yield Problem(("tap_url",), "insecure_credentials", message, "Give an https URL.")


def adapter_advice(config: ProjectConfig) -> Iterator[Problem]:
    """Queries whose archive nothing asks for, or nothing can name: most often a typing error."""
    adapters = config.adapters
    discovery = config.discovery
    for part, queries in (("queries", discovery.queries), ("enrichments", discovery.enrichments)):
        for index, query in enumerate(queries):
            path: Path = ("discovery", part, index, "adapter")
            name = query.adapter
            known = name in adapters.required or name in adapters.definitions or name in _BUILT_IN
            if not known and not _SETTABLE.fullmatch(name):
                yield Problem(
                    path,
                    "adapter_not_configurable",
                    f"nothing can give {name!r} a URL: no environment variable can have that name",
                    f"Add it under adapters.definitions, or use letters, digits and _: {_variable(name)}.",
                )
            elif name not in adapters.required:
                yield Problem(
                    path,
                    "adapter_not_required",
                    f"{name!r} is not in adapters.required",
                    "Add it there, so that nothing is looked for while it is away; or is it misspelt? "
                    f"Required: {', '.join(adapters.required)}.",
                )


def _variable(name: str) -> str:
    return f"BEAMPIPE_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_').upper() or 'NAME'}_TAP_URL"


def _url_fault(url: str) -> str | None:
    """What is wrong with a URL; the URL itself is never in the words, since it may hold a secret."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        secret = "@" in parts.netloc
    except ValueError:
        return "is not a URL"
    if secret:
        return "must hold no user name and no password"
    if not usable or re.search(r"[\s\x00-\x1f\x7f]", url):
        return "is not an http or https URL"
    return None


def _not_a_service(url: str) -> str | None:
    parts = urlsplit(url)
    return "must have no query and no fragment" if parts.query or parts.fragment else None


def _private_way(url: str) -> bool:
    """Whether what is sent stays secret: over TLS, or within this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
