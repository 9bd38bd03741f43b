"""XML of services read without trust: no document types, no entities, nothing from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lxml.etree import _Element

MAX_BYTES: Final = 4 * 1024 * 1024
"""Longest document about a service or a job; tables have a limit of their own."""

_WIDE: Final = (b"\xff\xfe", b"\xfe\xff", b"\x00", b"<\x00", b"\x4c\x6f")


class XmlError(Exception):
    """A document that is not read; translated by the modules that read one."""


def refuse_tricks(body: bytes) -> None:
    """Refuse what makes a short document long, or hides it from a look at its bytes.

    Entities can multiply a few bytes into gigabytes, and no IVOA document needs any; UTF-16, UTF-32
    and EBCDIC would hide them, and no service sends those.

    Raises
    ------
    XmlError
        The document declares entities, or is not in an encoding that extends ASCII.
    """
    if body.startswith(_WIDE):
        raise XmlError("the document is in UTF-16, UTF-32 or EBCDIC, which no service sends")
    if b"<!ENTITY" in body:
        raise XmlError("the document declares entities, which could make it grow without end")


def parse_xml(body: bytes) -> _Element:
    """The root of a small document.

    Raises
    ------
    XmlError
        It is too long, not well-formed, or declares entities.
    """
    from lxml import etree  # noqa: PLC0415  # only for what services say of themselves and of jobs

    if len(body) > MAX_BYTES:
        raise XmlError(f"the document is longer than {MAX_BYTES} bytes")
    refuse_tricks(body)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    try:
        return etree.fromstring(body, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise XmlError(f"the document is no XML: {error}") from error


def local(element: _Element) -> str:
    """An element's name without its namespace; ``""`` for what is no element."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: _Element, name: str) -> str | None:
    """An attribute by its name in whatever namespace, trimmed."""
    for key, value in element.attrib.items():
        if str(key).rpartition("}")[2] == name:
            return str(value).strip()
    return None


def children(element: _Element, name: str) -> Iterator[_Element]:
    """The children of that name, in whatever namespace."""
    return (child for child in element if local(child) == name)


def child_text(element: _Element, *path: str) -> str:
    """The trimmed text below the first children of these names; ``""`` when there are none."""
    found: _Element | None = element
    for name in path:
        found = next(children(found, name), None) if found is not None else None
    return "".join(str(piece) for piece in found.itertext()).strip() if found is not None else ""
