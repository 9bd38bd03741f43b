"""Outbox messages to Dagster events, and the partitions that they need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import dagster as dg

from beampipe_dagster.defs import metadata, names
from beampipe_dagster.ledger.outbox import StoredMessage

AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation

_RENDER: Final[Mapping[str, Callable[[Mapping[str, Any]], metadata.Metadata]]] = {
    names.SOURCE_REGISTRY: metadata.of_registry,
    names.ARCHIVE_METADATA: metadata.of_signature,
    names.EXECUTION_OUTCOME: metadata.of_outcome,
}


def to_event(message: StoredMessage) -> AssetEvent:
    """The event that a message tells.

    A check evaluation carries its partition in the metadata only: Dagster stores one evaluation a check and
    partition when it comes without a run, and refuses the second for ever.
    """
    key = names.asset_key(message.project_module, message.asset)
    if message.kind == "check":
        facts = dict(message.payload)
        shown: metadata.Metadata = {
            "partition": metadata.text(facts.get("partition_key")),
            "execution": metadata.text(facts.get("execution_id")),
        }
        if facts.get("error"):
            shown["error"] = metadata.text(facts["error"])
        return dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=str(facts["check"]),
            passed=bool(facts["passed"]),
            severity=dg.AssetCheckSeverity.ERROR,
            metadata=shown,
        )
    render = _RENDER.get(message.asset, metadata.of_step)
    shown = {**render(message.payload), "outbox_id": dg.MetadataValue.int(message.id)}
    if message.kind == "observation":
        return dg.AssetObservation(asset_key=key, partition=message.partition_key, metadata=shown)
    return dg.AssetMaterialization(asset_key=key, partition=message.partition_key, metadata=shown)


def partition_keys(messages: Iterable[StoredMessage]) -> dict[str, list[str]]:
    """Partition keys that the messages speak of, by survey, each once and in order."""
    wanted: dict[str, dict[str, None]] = defaultdict(dict)
    for message in messages:
        if message.partition_key is not None and message.kind != "check":
            wanted[message.project_module][message.partition_key] = None
    return {project: list(keys) for project, keys in wanted.items()}
