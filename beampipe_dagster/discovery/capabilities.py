"""What a TAP service says that it can do (VOSI 1.1 section 2, TAPRegExt 1.0)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from beampipe_dagster.discovery.archive import CONSERVATIVE, TapCapabilities
from beampipe_dagster.discovery.xml import XmlError, attribute, child_text, children, local, parse_xml

if TYPE_CHECKING:
    from lxml.etree import _Element

_TAP = re.compile(r"ivo://ivoa\.net/std/TAP(?:#.*)?", re.IGNORECASE)
_AUXILIARY = "#aux"
_UPLOAD = re.compile(r"ivo://ivoa\.net/std/TAPRegExt#upload-#?inline", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,18}")


def read_capabilities(body: bytes) -> TapCapabilities:
    """What a capabilities document says of its TAP service.

    A service that has a TAP capability has jobs, since TAP 1.1 (section 2) requires them. A document
    that cannot be read, or that is about no TAP service, says nothing: :data:`CONSERVATIVE`.
    """
    try:
        root = parse_xml(body)
    except XmlError:
        return CONSERVATIVE
    found = [
        capability
        for capability in root
        if local(capability) == "capability"
        and _TAP.fullmatch(attribute(capability, "standardID") or "")
        and _AUXILIARY not in (attribute(capability, "standardID") or "")
    ]
    return _read(found[0]) if found else CONSERVATIVE


def _read(tap: _Element) -> TapCapabilities:
    methods = [attribute(method, "ivo-id") or "" for method in children(tap, "uploadMethod")]
    return TapCapabilities(
        upload=any(_UPLOAD.fullmatch(method) for method in methods),
        upload_row_limit=_rows(tap, "uploadLimit", "hard"),
        async_=True,
        default_maxrec=_rows(tap, "outputLimit", "default"),
        hard_maxrec=_rows(tap, "outputLimit", "hard"),
        formats=_formats(tap),
        languages=tuple(
            "-".join(filter(None, (child_text(language, "name"), child_text(version))))
            for language in children(tap, "language")
            for version in children(language, "version")
        ),
        documented=True,
    )


def _rows(tap: _Element, limit: str, kind: str) -> int | None:
    """A limit in rows; one in bytes says nothing about rows."""
    for element in children(tap, limit):
        for value in children(element, kind):
            text = child_text(value)
            if (attribute(value, "unit") or "row") == "row" and _NUMBER.fullmatch(text) and int(text) > 0:
                return int(text)
    return None


def _formats(tap: _Element) -> tuple[str, ...]:
    named = [
        child_text(name)
        for element in children(tap, "outputFormat")
        for kind in ("mime", "alias")
        for name in children(element, kind)
    ]
    return tuple(dict.fromkeys(filter(None, named)))
