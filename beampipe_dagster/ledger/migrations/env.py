"""Runs migrations on the connection that :mod:`beampipe_dagster.ledger.migrate` hands over."""

from typing import Any, Literal

from alembic import context

from beampipe_dagster.ledger.tables import VERSION_TABLE, metadata
from beampipe_dagster.ledger.types import Json, UtcDateTime


def _render(kind: str, item: Any, autogen: Any) -> str | Literal[False]:
    """Name the ledger's own column types, so that a generated step reads like the tables."""
    names = "from beampipe_dagster.ledger.types import Json, UtcDateTime"
    if kind == "type" and isinstance(item, UtcDateTime):
        autogen.imports.add(names)
        return "UtcDateTime()"
    if kind == "type" and item is Json:
        autogen.imports.add(names)
        return "Json"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    render_item=_render,
    # Dagster may keep its own tables in the same database, and has the usual one.
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
