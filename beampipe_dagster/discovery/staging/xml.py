"""Reading XML of a stranger: no entities, no network, no namespaces to stumble over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lxml import etree

HREF: Final = "{http://www.w3.org/1999/xlink}href"


class UnreadableXmlError(Exception):
    """A body that is no XML; translated by the module that asked for it."""


def parse(body: bytes) -> etree._Element:
    """The root of a document; white space around it does not count.

    Raises
    ------
    UnreadableXmlError
        The body is no well-formed XML, or has a document type, which none of these documents has.
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True
    )
    try:
        root = etree.fromstring(body.strip(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise UnreadableXmlError(str(error)) from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise UnreadableXmlError("it has a document type")
    return root


def local(element: etree._Element) -> str:
    """An element's name without its namespace; empty for a processing instruction."""
    return etree.QName(element).localname if isinstance(element.tag, str) else ""


def all_of(element: etree._Element, name: str) -> Iterator[etree._Element]:
    """The element itself and those below it that have this local name, in the order of the document."""
    return (one for one in element.iter() if local(one) == name)


def child(element: etree._Element, name: str) -> etree._Element | None:
    """The first direct child of this local name."""
    return next((one for one in element if local(one) == name), None)


def text_of(element: etree._Element | None) -> str:
    """All text inside, trimmed; empty for no element."""
    return "" if element is None else "".join(str(part) for part in element.itertext()).strip()


def href_of(element: etree._Element) -> str:
    """The element's ``xlink:href``, trimmed; a service that forgot the namespace is understood as well."""
    found = element.get(HREF)
    if found is None:
        found = next((str(v) for k, v in element.attrib.items() if str(k).rpartition("}")[2] == "href"), "")
    return str(found).strip()
