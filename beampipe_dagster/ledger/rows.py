"""Rows to frozen values: the one place where a result row becomes a dataclass."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy.engine import Row

T = TypeVar("T")


def to_value(kind: type[T], row: Row[Any]) -> T:
    """The dataclass ``kind`` from the columns of ``row`` that have its field names."""
    mapping = row._mapping  # noqa: SLF001  # SQLAlchemy's public name for it
    return kind(**{field.name: mapping[field.name] for field in fields(kind)})  # type: ignore[arg-type]
