r"""Canonical JSON: one text for one value, and the digest of that text.

Every hash in the ledger (discovery signatures, manifests, graphs, profiles) is the SHA-256 of this
text, so its rules never change:

* object keys in the order of their code points (the order of their UTF-8 bytes), no white space;
* strings escape only ``"``, ``\\`` and the control characters below U+0020 (the short forms where
  JSON has one, else ``\u00xx`` in lower case); everything else stays as it is, in UTF-8;
* integers of the signed or unsigned 64-bit range are printed plainly, any other integer is a float;
* floats have the shortest digits that read back as the same double: plain decimal while the first
  digit's exponent is between -5 and 15 (with ``.0`` when integral), else ``d.ddde+N`` without zero
  padding.

In a text that is read, the last of several equal keys wins and ``-0`` is the float ``-0.0``;
``NaN`` and infinities are not JSON and are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from json.decoder import JSONDecodeError
from typing import NoReturn, TypeAlias, cast

from beampipe_dagster.errors import ConfigError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
"""What JSON can say. Object keys are strings; a number without point or exponent is an ``int``."""

INT_MIN = -(2**63)
"""The smallest integer that stays one."""
INT_MAX = 2**64 - 1
"""The largest integer that stays one."""

# Made once: a JSON encoder keeps nothing of what it encodes, and to make one takes longer than a short text.
_SORTED = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
_ORDERED = json.JSONEncoder(ensure_ascii=False, sort_keys=False, separators=(",", ":"), allow_nan=False)

# The C encoder prints doubles as ``repr`` does. That is the canonical text except for the exponents
# -5 to -9 (``1e-05``, ``1e-06``), which also makes them easy to find; an integer that may be too
# long has 19 digits. Manifests are millions of characters without either, so that looking for them
# must cost less than writing the text: a run of digits is found as a run of zeros.
_SUSPECT = re.compile(r"[0-9]e-0|[0-9]{19}")
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_RUN = b"0" * 19
_REPAIR = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"'  # a string: stepped over as a whole
    r"|(?P<mantissa>-?[0-9]+(?:\.[0-9]+)?)e-0(?P<exponent>[0-9])"
    r"|(?<![0-9.])(?P<integer>-?[0-9]{19,})(?![0-9.e])",
    re.DOTALL,
)
# Numbers that the plain reader gets wrong: ``-0``, long integers, exponents that overflow a double.
_READ_SUSPECT = re.compile(r"-0(?![0-9.eE])|[0-9]{19}|[eE]\+?[0-9]{3}")


def canonical_json(value: JsonValue) -> str:
    """The canonical text of a value.

    Parameters
    ----------
    value
        The value; tuples count as lists.

    Returns
    -------
    str
        One line of JSON by the rules of this module.

    Raises
    ------
    ConfigError
        ``invalid_json``: NaN, an infinity, a lone surrogate, a cycle, nesting beyond the
        interpreter's stack, or an object that JSON cannot hold.
    """
    if type(value) is float:
        text = repr(value)
        # Without an exponent that is the canonical text; ``inf`` and ``nan`` have an ``n``.
        if "e" not in text and "n" not in text:
            return text
    return _canonical(value, _SORTED)


def ordered_json(value: JsonValue) -> str:
    """As :func:`canonical_json`, but with object keys in the order in which the value has them.

    For the few digests whose key order is that of a declaration instead of the alphabet.
    """
    return _canonical(value, _ORDERED)


def _canonical(value: JsonValue, encoder: json.JSONEncoder) -> str:
    try:
        text = encoder.encode(value)
        raw = text.encode()
        maybe = "e-0" in text or _LONG_RUN in raw.translate(_DIGITS_AS_ZEROS)
        if maybe and _SUSPECT.search(text):
            text = _REPAIR.sub(_repaired, text)
    except RecursionError:
        raise _refused("the value is nested too deeply") from None
    except UnicodeEncodeError:
        raise _refused("a string holds half of a surrogate pair, which is no character") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise _refused(str(error)) from None
    return text


def _repaired(match: re.Match[str]) -> str:
    mantissa, exponent, integer = match.group("mantissa", "exponent", "integer")
    if integer is not None:
        number = int(integer)
        return integer if INT_MIN <= number <= INT_MAX else repr(float(number))
    if mantissa is None:
        return match.group()
    if exponent != "5":
        return f"{mantissa}e-{exponent}"
    sign = "-" if mantissa.startswith("-") else ""
    return f"{sign}0.0000{mantissa.lstrip('-').replace('.', '')}"


def parse_json(text: str | bytes, *, name: str = "<text>") -> JsonValue:
    """Read JSON the way in which canonical JSON counts.

    Parameters
    ----------
    text
        The document; bytes are UTF-8 without a byte order mark.
    name
        What an error calls the document.

    Returns
    -------
    JsonValue
        The value; of several equal keys the last one, integers beyond 64 bits and ``-0`` as floats.

    Raises
    ------
    ConfigError
        ``invalid_json``, with line and column where they are known: not JSON, NaN or an infinity, a
        number beyond a double, half of a surrogate pair, nesting beyond the interpreter's stack.
    """
    try:
        document = text if isinstance(text, str) else text.decode()
        value = _decode(document)
        if "\\u" in document or not document.isascii():
            json.dumps(value, ensure_ascii=False).encode()
    except _NotANumberError as error:
        raise _refused(str(error), name=name) from None
    except JSONDecodeError as error:
        raise _refused(error.msg.lower(), name=name, place=(error.lineno, error.colno)) from None
    except UnicodeDecodeError as error:
        raise _refused(f"byte {error.start} is not UTF-8", name=name) from None
    except UnicodeEncodeError:
        raise _refused("a string holds half of a surrogate pair", name=name) from None
    except RecursionError:
        raise _refused("the value is nested too deeply", name=name) from None
    return value


class _NotANumberError(Exception):
    """A literal that JSON or a double does not have; never leaves this module."""


def _decode(document: str) -> JsonValue:
    if _READ_SUSPECT.search(document):
        return cast(
            "JsonValue",
            json.loads(document, parse_int=_integer, parse_float=_finite, parse_constant=_constant),
        )
    return cast("JsonValue", json.loads(document, parse_constant=_constant))


def _integer(literal: str) -> int | float:
    if literal == "-0":
        return -0.0
    if len(literal) <= 20:  # 64 bits have at most 20 characters
        number = int(literal)
        if INT_MIN <= number <= INT_MAX:
            return number
    return _finite(literal)


def _finite(literal: str) -> float:
    number = float(literal)
    if number in (float("inf"), float("-inf")):
        shown = literal if len(literal) <= 40 else f"{literal[:37]}..."
        raise _NotANumberError(f"the number {shown} is beyond the range of a double")
    return number


def _constant(literal: str) -> NoReturn:
    raise _NotANumberError(f"{literal} is not a JSON number")


def digest(value: JsonValue) -> str:
    """SHA-256 of the canonical text, 64 lower-case hex digits.

    Raises
    ------
    ConfigError
        As :func:`canonical_json`.
    """
    return sha256_hex(canonical_json(value))


def sha256_hex(data: str | bytes) -> str:
    """SHA-256 of bytes, or of a text's UTF-8 bytes: 64 lower-case hex digits.

    Raises
    ------
    ConfigError
        ``invalid_json``: the text holds half of a surrogate pair.
    """
    return hashlib.sha256(utf8(data) if isinstance(data, str) else data).hexdigest()


def utf8(text: str) -> bytes:
    """A text's UTF-8 bytes.

    Raises
    ------
    ConfigError
        ``invalid_json``: the text holds half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _refused("the text holds half of a surrogate pair, which is no character") from None


def _refused(
    reason: str, *, name: str = "canonical JSON", place: tuple[int, int] | None = None
) -> ConfigError:
    where = f"{name}:{place[0]}:{place[1]}" if place else name
    return ConfigError(
        f"{where}: {reason}",
        code="invalid_json",
        hint="Give JSON as RFC 8259 has it: UTF-8, finite numbers, string keys.",
        details={"line": place[0], "column": place[1]} if place else None,
    )
