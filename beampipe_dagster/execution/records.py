"""The dataset records behind signatures, as they were signed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.errors import DataError
from beampipe_dagster.ledger import archive, projects
from beampipe_dagster.signature.payload import sign_stored


def signed_records(
    conn: Connection, project_module: str, sources: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The dataset records that signatures sign, in signed order.

    They come from the history of signatures, not from the current metadata: a deposit that arrives between
    admission and the manifest belongs to the next execution. Signing them again must give the same digest.

    Parameters
    ----------
    sources
        ``{source_identifier, discovery_signature}`` each, as an execution keeps them.

    Raises
    ------
    NotFoundError
        ``signature_not_found``.
    DataError
        ``signature_mismatch``: the stored rows are not what was signed.
    """
    records: list[dict[str, Any]] = []
    for source in sources:
        name, wanted = source["source_identifier"], source["discovery_signature"]
        change = archive.change_for(conn, project_module, name, wanted)
        revision = projects.revision(conn, change.project_config_id)
        options = ProjectConfig.from_json(revision.spec).signature_options
        signed = sign_stored(
            change.metadata_json,
            exclude_fields=options.exclude_fields,
            include_flags=options.include_discovery_flags,
        )
        if signed.digest != wanted:
            raise DataError(
                f"the stored metadata of {name!r} no longer give its signature {wanted[:12]}",
                code="signature_mismatch",
                hint="the ledger's rows were changed by hand; ask for a new discovery",
            )
        for sbid in sorted(signed.payload):
            document: Any = signed.payload[sbid]
            records.extend(document["datasets"])
    return records
