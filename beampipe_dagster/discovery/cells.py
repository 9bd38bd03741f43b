"""Cells of an answer: from a parser's value to text, and from text to the value of a declared type.

The text is the same whichever way a service wrote the table, since signatures are made of it. The
value is read from the text and from nothing else, so that both always agree.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from beampipe_dagster.config.canonical import canonical_json

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue

_WHOLE: Final = frozenset({"short", "int", "long", "unsignedByte"})
_REAL: Final = frozenset({"float", "double"})
_TRUTH: Final = {"true": True, "false": False}


def cell_text(value: Any) -> str:  # noqa: ANN401  # numpy scalars and arrays of any type
    """A cell as text, the same whichever way the service wrote it.

    Parameters
    ----------
    value
        A Python or numpy value.

    Returns
    -------
    str
        ``""`` for NULL, a masked value and NaN; strings trimmed; ``true`` and ``false``; integers
        plainly; floats with the shortest digits that read back the same in their own precision, in
        canonical JSON's form (``198.39``, ``2.0``, ``1e-7``), infinities as ``+Inf`` and ``-Inf``;
        arrays as their elements with blanks between, ``NaN`` for an element that is NULL.
    """
    if value is None or type(value).__name__ == "MaskedConstant":
        return ""
    if isinstance(value, str | bytes):
        return (value if isinstance(value, str) else value.decode(errors="replace")).strip()
    if isinstance(value, list | tuple) or getattr(value, "ndim", False):
        parts = [cell_text(item) for item in value]
        return " ".join(part or "NaN" for part in parts) if any(parts) else ""
    return _scalar_text(value)


def typed_cell(text: str, datatype: str, arraysize: str | None = None) -> JsonValue:
    """The value that a cell's text stands for in a column of a type.

    Parameters
    ----------
    text
        As :func:`cell_text` gives it.
    datatype, arraysize
        As the document declares the column.

    Returns
    -------
    JsonValue
        A number or a truth value; a list of them, with ``None`` for NULL, for an array; text for
        texts, bits and complex numbers; ``None`` for an empty cell, since VOTable does not tell an
        empty text from none.
    """
    if not text:
        return None
    numeric = datatype in _WHOLE or datatype in _REAL or datatype == "boolean"
    if numeric and arraysize not in {None, "", "1"}:
        return [None if part == "NaN" else _typed(part, datatype) for part in text.split()]
    return _typed(text, datatype)


def _typed(text: str, datatype: str) -> JsonValue:
    try:
        if datatype in _WHOLE:
            return int(text)
        if datatype in _REAL:
            return float(text)
    except ValueError:  # a column of numbers that was given text by hand
        return text
    return _TRUTH.get(text, text) if datatype == "boolean" else text


def _scalar_text(value: Any) -> str:  # noqa: ANN401  # numpy scalars of any type
    if hasattr(value, "dtype"):
        # A float32 is 0.1 in its own precision and 0.10000000149011612 as a double.
        short = value.dtype.kind == "f" and value.dtype.itemsize < 8
        value = float(str(value)) if short else value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, complex):
        return f"{_float_text(value.real) or 'NaN'} {_float_text(value.imag) or 'NaN'}"
    return str(value).strip()


def _float_text(value: float) -> str:
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return canonical_json(value)
