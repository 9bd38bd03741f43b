"""YAML for people, bounded: JSON values with the line and column of everything in them.

Scalars follow YAML 1.2 (https://yaml.org/spec/1.2.2/, core schema) rather than 1.1: ``yes``, ``on``,
``0123``, ``1:30`` and ``2024-01-01`` are strings; ``0x1F``, ``0o17`` and ``0b11`` are integers. What
JSON has no word for becomes what JSON has: infinities and NaN are ``null``, a value with a tag of
its own is ``{"!tag": value}``, scalar keys are strings. There is no merge key: ``<<`` is a key like
any other. Equal keys in one mapping are refused.

A document is refused before it can cost anything: the parser's events are read one by one, and the
bounds on depth, nodes and text count an alias as often as it would be copied.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from beampipe_dagster.config.canonical import INT_MAX, INT_MIN, JsonValue, canonical_json
from beampipe_dagster.errors import ConfigError

MAX_BYTES = 1024 * 1024
"""Default bound on the size of a document, in bytes of UTF-8."""
MAX_DEPTH = 64
"""Default bound on how deep lists and mappings are nested."""
MAX_NODES = 100_000
"""Default bound on scalars, lists, mappings and keys, each alias counted as a copy."""
_TEXT_FACTOR = 4
"""Aliases may repeat text up to this many times the bound on bytes."""

Path = tuple[str | int, ...]
"""Keys and indexes from the root of a document to a value in it."""
Place = tuple[int, int]
"""Line and column, both from 1."""

# With libyaml the events come from C; the pure Python parser gives the same ones, slower.
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_CORE = "tag:yaml.org,2002:"
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_INTEGER = re.compile(r"([-+]?)(?:0x([0-9A-Fa-f]+)|0o([0-7]+)|0b([01]+)|(0|[1-9][0-9]*))")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_ZERO_LED = re.compile(r"[-+]?0[0-9]+")


@dataclass(slots=True)
class _Node:
    place: Place
    value: JsonValue = None
    """Of a scalar; for a list or a mapping, unused."""
    elements: list[_Node] | None = None
    entries: dict[str, tuple[Place, _Node]] | None = None
    height: int = 0
    nodes: int = 1
    characters: int = 0
    closed: bool = True

    def adopt(self, child: _Node) -> None:
        """Count a child's weight as one's own."""
        self.height = max(self.height, child.height + 1)
        self.nodes += child.nodes
        self.characters += child.characters

    def as_value(self) -> JsonValue:
        """A fresh JSON value; its depth is bounded, so recursion is."""
        if self.elements is not None:
            return [element.as_value() for element in self.elements]
        if self.entries is not None:
            return {key: node.as_value() for key, (_, node) in self.entries.items()}
        return self.value


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A document's value, and where in the text each part of it stands.

    Parameters
    ----------
    value
        The value; nothing in it is shared, not even what the text shares by aliases.
    name
        What messages call the document.
    """

    value: JsonValue
    name: str
    _root: _Node = field(repr=False, compare=False)

    def position(self, path: Path) -> Place | None:
        """Line and column, from 1, of a value.

        Parameters
        ----------
        path
            Keys and indexes from the root; ``()`` is the root.

        Returns
        -------
        tuple of int, or None
            For a mapping's entry the place of its key, for a list's element that of the element;
            ``None`` when there is no such value. What an alias stands for is where its anchor is.
        """
        node, place = self._root, self._root.place
        for step in path:
            if isinstance(step, str) and node.entries is not None and step in node.entries:
                place, node = node.entries[step]
            elif isinstance(step, int) and node.elements and 0 <= step < len(node.elements):
                node = node.elements[step]
                place = node.place
            else:
                return None
        return place


def load_yaml(
    text: str | bytes,
    *,
    name: str = "<text>",
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_nodes: int = MAX_NODES,
) -> YamlDocument:
    """Read one YAML document.

    Parameters
    ----------
    text
        The document; bytes are UTF-8. Empty text is ``null``.
    name
        What messages call the document, usually its file name.
    max_bytes, max_depth, max_nodes
        The bounds; see the module's constants.

    Raises
    ------
    ConfigError
        ``invalid_yaml``, or ``invalid_config_value`` for a key that JSON cannot have. The message
        begins with ``name:line:column`` where the place is known; ``details`` holds ``reason``,
        then also ``line`` and ``column``, and ``whole_document`` when it is not about one value.
    """
    source = _checked_text(text, name, max_bytes)
    composer = _Composer(name, max_depth, max_nodes, max_bytes * _TEXT_FACTOR)
    try:
        parser = _Parser(source)
        try:
            while parser.check_event():
                composer.take(parser.get_event())
        finally:
            parser.dispose()
    except yaml.reader.ReaderError as error:
        _refuse_character(error, source, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _refused(
            f"not YAML: {error.problem or error.context}", name, _place(mark) if mark else None
        ) from None
    root = composer.root or _Node((1, 1))
    return YamlDocument(root.as_value(), name, root)


def _checked_text(text: str | bytes, name: str, max_bytes: int) -> str:
    try:
        size = len(text) if isinstance(text, bytes) or len(text) > max_bytes else len(text.encode())
        if size > max_bytes:
            raise _refused(
                f"the document has {size} bytes and more than {max_bytes} are not read",
                name,
                None,
                "Split the document, or take data out of it.",
            )
        decoded = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise _refused("a byte that is not UTF-8", name, (line, column), "Save the file as UTF-8.") from None
    except UnicodeEncodeError:
        raise _refused("half of a surrogate pair is no character", name, None) from None
    if decoded.startswith("\ufeff"):
        raise _refused(
            "the document begins with a byte order mark",
            name,
            (1, 1),
            "Save the file as UTF-8 without a byte order mark.",
            whole=True,
        )
    return decoded


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is still being read."""

    node: _Node
    anchor: str | None
    tag: str | None
    key: str | None = None
    key_place: Place = (1, 1)


class _Composer:
    """Makes nodes of parser events, within bounds."""

    def __init__(self, name: str, max_depth: int, max_nodes: int, max_characters: int) -> None:
        self.root: _Node | None = None
        self._name = name
        self._max_depth = max_depth
        self._max_nodes = max_nodes
        self._max_characters = max_characters
        self._stack: list[_Frame] = []
        self._anchors: dict[str, _Node] = {}
        self._nodes = 0
        self._characters = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        """Go on by one event."""
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            frame = self._stack.pop()
            frame.node.closed = True
            node = _tagged(frame.node, frame.tag)
            if frame.anchor and self._anchors.get(frame.anchor) is frame.node:
                self._anchors[frame.anchor] = node
            self._put(node)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._refuse(
                    "a second document begins here",
                    _place(event.start_mark),
                    "Keep one document in a file.",
                    whole=True,
                )

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        place = _place(event.start_mark)
        plain = event.style in {None, ""}
        try:
            tag = _local_tag(event.tag)
            value = _scalar_value(event.value, event.tag, plain=plain)
        except ValueError as error:
            self._refuse(str(error), place, "Quote the value to have it as text.")
        node = _Node(place, value=value, characters=len(event.value))
        if self._stack and self._stack[-1].node.entries is not None:
            frame = self._stack[-1]
            if frame.key is None:
                self._count(1, len(event.value), 0, place)
                self._key(frame, node, tag, place)
                if event.anchor:
                    self._anchors[event.anchor] = node
                return
        self._count(1, len(event.value), 0, place)
        node = _tagged(node, tag)
        if event.anchor:
            self._anchors[event.anchor] = node
        self._put(node)

    def _alias(self, event: yaml.AliasEvent) -> None:
        place = _place(event.start_mark)
        node = self._anchors.get(event.anchor or "")
        if node is None:
            self._refuse(f"the alias {_shown(event.anchor or '')} has no anchor before it", place)
        if not node.closed:
            self._refuse(f"the alias {_shown(event.anchor or '')} stands inside its own anchor", place)
        self._count(node.nodes, node.characters, node.height, place)
        frame = self._stack[-1] if self._stack else None
        if frame and frame.node.entries is not None and frame.key is None:
            self._key(frame, node, None, place)
        else:
            self._put(node)

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        place = _place(event.start_mark)
        frame = self._stack[-1] if self._stack else None
        if frame and frame.node.entries is not None and frame.key is None:
            self._refuse_key("a list or a mapping", place)
        try:
            tag = _local_tag(event.tag)
        except ValueError as error:
            self._refuse(str(error), place)
        self._count(1, 0, 1, place)
        node = _Node(place, closed=False, height=1)
        if isinstance(event, yaml.MappingStartEvent):
            expected, node.entries = "map", {}
        else:
            expected, node.elements = "seq", []
        if event.tag and not tag and event.tag not in {"!", _CORE + expected}:
            self._refuse(f"the tag {_shown(event.tag)} does not fit here", place)
        if event.anchor:
            self._anchors[event.anchor] = node
        self._stack.append(_Frame(node, event.anchor, tag))

    def _key(self, frame: _Frame, node: _Node, tag: str | None, place: Place) -> None:
        if tag or node.elements is not None or node.entries is not None:
            self._refuse_key("a list, a mapping or a tagged value", place)
        if node.value is None:
            self._refuse_key("null", place)
        key = node.value if isinstance(node.value, str) else canonical_json(node.value)
        entries = frame.node.entries
        if entries is not None and key in entries:
            first = entries[key][0]
            self._refuse(
                f"the key {_shown(key)} stands twice in one mapping",
                place,
                f"Keep one of the two; the first is in line {first[0]}.",
            )
        frame.key, frame.key_place = key, place
        frame.node.nodes += 1
        frame.node.characters += len(key)

    def _put(self, node: _Node) -> None:
        if not self._stack:
            self.root = node
            return
        frame = self._stack[-1]
        frame.node.adopt(node)
        if frame.node.elements is not None:
            frame.node.elements.append(node)
        elif frame.node.entries is not None and frame.key is not None:
            frame.node.entries[frame.key] = (frame.key_place, node)
            frame.key = None

    def _count(self, nodes: int, characters: int, height: int, place: Place) -> None:
        self._nodes += nodes
        self._characters += characters
        if len(self._stack) + height > self._max_depth:
            self._refuse(
                f"lists and mappings are nested more than {self._max_depth} deep",
                place,
                "Make the document flatter.",
            )
        if self._nodes > self._max_nodes:
            self._refuse(
                f"the document holds more than {self._max_nodes} values, aliases counted as copies",
                place,
                "Take data out of the document, and use fewer aliases.",
            )
        if self._characters > self._max_characters:
            self._refuse(
                f"aliases repeat more than {self._max_characters} characters of text",
                place,
                "Use fewer aliases.",
            )

    def _refuse_key(self, what: str, place: Place) -> NoReturn:
        raise _refused(
            f"{what} cannot be a key",
            self._name,
            place,
            "Give each entry a text as its key, in quotes if need be.",
            code="invalid_config_value",
        )

    def _refuse(self, reason: str, place: Place, hint: str | None = None, *, whole: bool = False) -> NoReturn:
        raise _refused(reason, self._name, place, hint, whole=whole)


def _scalar_value(text: str, tag: str | None, *, plain: bool) -> JsonValue:
    """The value of a scalar; ``ValueError`` with the reason when there is none."""
    if tag is None or (tag.startswith("!") and tag != "!"):
        return _plain_value(text) if plain else text
    if tag in {"!", _CORE + "str"}:
        return text
    value = _plain_value(text)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "null": text in _NULL,
        "bool": isinstance(value, bool),
        "int": number and isinstance(value, int),
        "float": number or _NOT_FINITE.fullmatch(text) is not None,
    }
    kind = tag.removeprefix(_CORE)
    if not fits.get(kind, False):
        raise ValueError(f"{_shown(text)} is not what its tag {_shown(tag)} says")
    return float(value) if kind == "float" and isinstance(value, int | float) else value


def _plain_value(text: str) -> JsonValue:
    if text in _NULL or _NOT_FINITE.fullmatch(text):
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] in "+-.0123456789":
        if match := _INTEGER.fullmatch(text):
            return _integer(match)
        if _FLOAT.fullmatch(text) and not _ZERO_LED.fullmatch(text):
            number = float(text)
            return number if math.isfinite(number) else text
    return text


def _integer(match: re.Match[str]) -> int:
    sign, hexadecimal, octal, binary, decimal = match.groups()
    digits = hexadecimal or octal or binary or decimal
    base = 16 if hexadecimal else 8 if octal else 2 if binary else 10
    significant = digits.lstrip("0") or "0"
    # 64 digits hold 64 bits in any base; a longer text is refused before it is computed with.
    number = int(significant, base) if len(significant) <= 64 else INT_MAX + 1
    number = -number if sign == "-" else number
    if INT_MIN <= number <= INT_MAX:
        return number
    raise ValueError(f"the integer {_shown(match.group())} does not fit into 64 bits")


def _local_tag(tag: str | None) -> str | None:
    """A tag of the document's own (``!name``); ``None`` for no tag and for the known ones."""
    if tag is None or tag == "!":
        return None
    if tag.startswith("!"):
        return tag
    known = {_CORE + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map")}
    if tag in known:
        return None
    raise ValueError(f"the tag {_shown(tag)} is not known")


def _tagged(node: _Node, tag: str | None) -> _Node:
    if tag is None:
        return node
    wrapper = _Node(node.place, entries={tag: (node.place, node)})
    wrapper.height = 1
    wrapper.adopt(node)
    return wrapper


def _place(mark: Any) -> Place:  # noqa: ANN401  # libyaml's marks and PyYAML's share no type
    return mark.line + 1, mark.column + 1


def _refuse_character(error: yaml.reader.ReaderError, source: str, name: str) -> NoReturn:
    # libyaml counts bytes, the Python parser characters; either way it is the first such character.
    before = source.encode()[: error.position].decode(errors="ignore")
    place = (before.count("\n") + 1, len(before) - before.rfind("\n"))
    raise _refused(f"not YAML: {error.reason}", name, place, "Take the control character out.") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _refused(
    reason: str,
    name: str,
    place: Place | None,
    hint: str | None = None,
    *,
    code: str = "invalid_yaml",
    whole: bool = False,
) -> ConfigError:
    where = f"{name}:{place[0]}:{place[1]}" if place else name
    details: dict[str, Any] = {"reason": reason}
    if place:
        details["line"], details["column"] = place
    if whole:
        details["whole_document"] = True
    return ConfigError(
        f"{where}: {reason}",
        code=code,
        hint=hint or "Check the indentation, the quotes and the brackets before this place.",
        details=details,
    )
