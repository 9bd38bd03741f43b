"""What all tables of the ledger share: one collection, its names for constraints, and columns of words."""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa

VERSION_TABLE = "ledger_version"
"""Which migration the ledger is at."""

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def one_of(column: str, words: type[StrEnum]) -> sa.CheckConstraint:
    """A check that a column holds one of the words, or nothing."""
    listed = ", ".join(f"'{word.value}'" for word in words)
    return sa.CheckConstraint(f"{column} IS NULL OR {column} IN ({listed})", name=column)
