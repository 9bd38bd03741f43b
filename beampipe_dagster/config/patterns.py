r"""Regular expressions of project files: the syntax of Rust's ``regex`` crate on Python's ``re``.

Project files are shared with systems that read their patterns with that crate, whose language is
smaller (no look-around, no back-references) and otherwise differs in small ways: ``$`` is only the
very end, ``\z`` exists, ``{`` must be a repetition, ``a++`` repeats a repetition. A pattern is
translated token by token; whatever cannot be given the same meaning is refused rather than guessed:
set operations and nested sets inside ``[...]``, ``\p{...}``, the flags ``U u x R``, and flags that
start in the middle of a group.

Groups count the same; their names are not needed, since results are taken by number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from beampipe_dagster.errors import ConfigError

MAX_PATTERN = 2000
"""Longest pattern that is compiled, in characters."""

_SAME_ESCAPES = frozenset("AbBdDsSwWntrfva")
_CLASS_ESCAPES = frozenset("dDsSwWntrfva")
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;=?@[\\]^_`{|}~ ")
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|[xuU]\{([0-9A-Fa-f]+)\}")
_GROUP_NAME = re.compile(r"\?P?<([A-Za-z_][A-Za-z0-9_.\[\]]*)>")
_GROUP_FLAGS = re.compile(r"\?([ims]*)(?:-([ims]+))?([:)])")
_COUNT = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
_POSIX_NAME = re.compile(r"\[:([a-z]+):\]")
_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    r"""Compile a project file's pattern.

    Parameters
    ----------
    pattern
        In the syntax of Rust's ``regex`` crate, e.g. ``SB(\d+)``.

    Raises
    ------
    ConfigError
        ``invalid_pattern``: not a pattern there, or one that cannot mean the same here.
    """
    if len(pattern) > MAX_PATTERN:
        raise _refused(
            f"{pattern[:40]}...", f"it has {len(pattern)} characters; at most {MAX_PATTERN} are read"
        )
    translated = _Translator(pattern).translate()
    try:
        return re.compile(translated)
    except (re.error, OverflowError, RecursionError) as error:
        raise _refused(pattern, str(error)) from None


@dataclass(slots=True)
class _Group:
    """An open group: where it began in the output, and what holds inside it."""

    start: int
    multiline: bool
    closing: str = ")"


@dataclass(slots=True)
class _Translator:
    """One walk over a pattern."""

    pattern: str
    position: int = 0
    out: list[str] = field(default_factory=list)
    groups: list[_Group] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    multiline: bool = False
    atom: int | None = None  # where in `out` the last repeatable piece begins
    repeated: bool = False  # whether that piece ends with a repetition
    fresh: bool = True  # whether nothing came yet in this group
    tail: str = ""  # what closes the flags of the whole pattern

    def translate(self) -> str:
        while self.position < len(self.pattern):
            self._step(self.pattern[self.position])
        if self.groups:
            raise self._error("a group is not closed")
        return "".join(self.out) + self.tail

    def _step(self, char: str) -> None:
        if char == "\\":
            self._emit(self._escape(_SAME_ESCAPES))
        elif char == "[":
            self._emit(self._set())
        elif char == "(":
            self._open()
        elif char == ")":
            self._close()
        elif char in "*+?{":
            self._repeat(char)
        elif char == "|":
            self.out.append("|")
            self.atom, self.fresh = None, False
            self.position += 1
        else:
            self.position += 1
            if char in "^.":
                self._emit(char)
            elif char == "$":
                self._emit("$" if self.multiline else r"\Z")
            else:
                self._emit(re.escape(char))

    def _emit(self, text: str) -> None:
        self.atom, self.repeated, self.fresh = len(self.out), False, False
        self.out.append(text)

    def _escape(self, same: frozenset[str]) -> str:
        rest = self.pattern[self.position + 1 :]
        if not rest:
            raise self._error("it ends in a lone backslash")
        number = _HEX.match(rest)
        if number:
            self.position += 1 + number.end()
            digits = next(group for group in number.groups() if group)
            code = int(digits, 16)
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                raise self._error(f"{digits} is no character")
            return re.escape(chr(code))
        char = rest[0]
        word_boundary = char in "bB" and rest[1:2] == "{"
        self.position += 2
        if char in same and not word_boundary:
            return f"\\{char}"
        if char == "z" and same is _SAME_ESCAPES:
            return r"\Z"
        if char in _PUNCTUATION:
            return re.escape(char)
        raise self._error(f"\\{char} is not known here")

    def _open(self) -> None:
        self.position += 1
        inside = self.pattern[self.position :]
        if not inside.startswith("?"):
            self._push("(")
            return
        named = _GROUP_NAME.match(inside)
        if named:
            if named[1] in self.names:
                raise self._error(f"two groups are called {named[1]}")
            self.names.add(named[1])
            self.position += named.end()
            self._push("(")
            return
        flags = _GROUP_FLAGS.match(inside)
        if not flags:
            raise self._error("look-around, back-references and this kind of group are not known")
        self.position += flags.end()
        self._flags(flags[1], flags[2] or "", closes=flags[3] == ")")

    def _flags(self, on: str, off: str, *, closes: bool) -> None:
        opening = f"(?{''.join(sorted(set(on)))}{'-' if off else ''}{''.join(sorted(set(off)))}:"
        multiline = ("m" in on or self.multiline) and "m" not in off
        if not closes:
            self._push(opening)
            self.multiline = multiline
            return
        if not on and not off:
            raise self._error("(?) sets no flag")
        if not self.fresh:
            raise self._error("flags must stand first in their group")
        self.out.append(opening)
        self.multiline = multiline
        if self.groups:
            self.groups[-1].closing += ")"
        else:
            self.tail += ")"

    def _push(self, opening: str) -> None:
        self.groups.append(_Group(start=len(self.out), multiline=self.multiline))
        self.out.append(opening)
        self.atom, self.fresh = None, True

    def _close(self) -> None:
        if not self.groups:
            raise self._error("a ) closes nothing")
        group = self.groups.pop()
        self.out.append(group.closing)
        self.multiline = group.multiline
        self.atom, self.repeated, self.fresh = group.start, False, False
        self.position += 1

    def _repeat(self, char: str) -> None:
        if self.atom is None:
            raise self._error(f"{char} repeats nothing")
        text = char
        self.position += 1
        if char == "{":
            count = _COUNT.match(self.pattern, self.position - 1)
            if not count or not (count[1] or (count[2] and count[3])):
                raise self._error("{ must be a repetition such as {2} or {1,3}")
            text = f"{{{count[1] or '0'}{count[2]}{count[3]}}}"
            self.position = count.end()
        if self.pattern.startswith("?", self.position):
            text += "?"
            self.position += 1
        # Never `a++`, which Python takes for a possessive repetition.
        if self.repeated:
            self.out[self.atom :] = [f"(?:{''.join(self.out[self.atom :])})"]
        self.out.append(text)
        self.repeated = True

    def _set(self) -> str:
        parts = ["["]
        self.position += 1
        if self.pattern.startswith("^", self.position):
            parts.append("^")
            self.position += 1
        first = True
        while True:
            char = self.pattern[self.position : self.position + 1]
            if not char:
                raise self._error("a [ is not closed")
            if char == "]" and not first:
                self.position += 1
                return "".join([*parts, "]"])
            parts.append(self._set_item(char))
            first = False

    def _set_item(self, char: str) -> str:
        if self.pattern[self.position : self.position + 2] in {"&&", "--", "~~"}:
            raise self._error("set operations inside [...] are not known here")
        if char == "[":
            posix = _POSIX_NAME.match(self.pattern, self.position)
            if not posix or posix[1] not in _POSIX:
                raise self._error("a set inside a set is not known here")
            self.position = posix.end()
            return _POSIX[posix[1]]
        if char == "\\":
            return self._escape(_CLASS_ESCAPES)
        self.position += 1
        return "-" if char == "-" else re.escape(char)

    def _error(self, reason: str) -> ConfigError:
        return _refused(self.pattern, reason)


def _refused(pattern: str, reason: str) -> ConfigError:
    return ConfigError(
        f"pattern {pattern!r}: {reason}",
        code="invalid_pattern",
        hint="Use plain groups, sets and repetitions; escape a literal brace or bracket.",
    )
