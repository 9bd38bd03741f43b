"""Rows to frozen values: the one place where a result row becomes a dataclass."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy.engine import Row

T = TypeVar("T")


def to_value(kind: type[T], row: Row[Any], *, absent: frozenset[str] = frozenset()) -> T:
    """The dataclass ``kind`` from the columns of ``row`` that have its field names.

    Fields that are ``absent`` are no columns and keep their defaults.
    """
    mapping = row._mapping  # noqa: SLF001  # SQLAlchemy's public name for it
    names = [field.name for field in fields(kind) if field.name not in absent]  # type: ignore[arg-type]
    return kind(**{name: mapping[name] for name in names})
