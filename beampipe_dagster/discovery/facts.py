"""What Dagster and the command line show about a signature: compact, the rows themselves stay in the ledger."""

from __future__ import annotations

from typing import Any, Final

from beampipe_dagster.ledger import archive

DATASETS_SHOWN: Final = 50


def change_facts(change: archive.SignatureChange) -> dict[str, Any]:
    """What Dagster shows about a signature: compact, the rows themselves stay in the ledger."""
    datasets = [
        {
            "sbid": sbid,
            "dataset_id": dataset.get("dataset_id") or dataset.get("visibility_filename") or "",
            "quality": dataset.get("quality_level") or "",
            "scan_id": dataset.get("scan_id") or "",
        }
        for sbid, document in sorted(_documents(change).items())
        for dataset in document.get("datasets", [])
    ]
    flags: dict[str, Any] = {}
    for document in _documents(change).values():
        flags.update(document.get("discovery_flags") or {})
    return {
        "source_identifier": change.source_identifier,
        "signature": change.signature,
        "previous_signature": change.previous_signature,
        "sbids": sorted(_documents(change)),
        "dataset_count": change.dataset_count,
        "datasets": datasets[:DATASETS_SHOWN],
        "flags": flags,
        "diff": change.diff,
        "evidence": change.evidence,
        "discovered_at": change.discovered_at.isoformat(),
    }


def _documents(change: archive.SignatureChange) -> dict[str, Any]:
    return dict(change.metadata_json)
