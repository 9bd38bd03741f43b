"""The scope of an execution: which sources, scheduling blocks and datasets it is about, and nothing else.

A scope is selected before anything is staged, and everything after that must be about exactly that: a
block that could not be staged, or a dataset that came in from somewhere else, would otherwise be found
in the products, weeks later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from beampipe_dagster.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.config.project import ProjectConfig

Selection: TypeAlias = "dict[str, tuple[str, ...] | None]"
"""By source identifier: the scheduling blocks that were selected, sorted; ``None`` for all of them."""

_SHOWN = 5
_AGAIN = "Discover the sources again, then admit a new execution."


class Dataset(NamedTuple):
    """The identity of one dataset."""

    source_identifier: str
    sbid: str
    dataset_id: str

    def __str__(self) -> str:
        return f"{self.source_identifier}/{self.sbid}/{self.dataset_id}"


def parse_sources(value: JsonValue) -> Selection:
    """Read the sources that an execution is asked for.

    Parameters
    ----------
    value
        A list of ``{"source_identifier": text, "sbids": [text, ...]}``. Without ``sbids``, or with
        ``null``, all scheduling blocks are meant. White space around the texts does not count; other
        keys are ignored.

    Raises
    ------
    InputError
        ``sources_not_array``, ``sources_empty``, ``entry_not_object``, ``source_identifier_blank``,
        ``source_duplicate``, ``sbids_not_array``, ``sbids_empty``, ``sbid_blank``, ``sbid_duplicate``.
    """
    if not isinstance(value, list):
        raise _bad("sources_not_array", "sources", "must be a list")
    if not value:
        raise _bad("sources_empty", "sources", "must hold at least one source")
    selection: Selection = {}
    for index, entry in enumerate(value):
        path = f"sources[{index}]"
        if not isinstance(entry, dict):
            raise _bad("entry_not_object", path, "must be an object with a source_identifier")
        source = _trimmed(entry.get("source_identifier"))
        if not source:
            raise _bad(
                "source_identifier_blank", f"{path}.source_identifier", "must be a text that is not blank"
            )
        if source in selection:
            raise _bad("source_duplicate", f"{path}.source_identifier", f"names {source!r} a second time")
        selection[source] = _parse_sbids(entry.get("sbids"), f"{path}.sbids")
    return selection


def _parse_sbids(value: JsonValue, path: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _bad("sbids_not_array", path, "must be a list of texts, or be left out for all")
    if not value:
        raise _bad("sbids_empty", path, "must name at least one scheduling block, or be left out for all")
    found: set[str] = set()
    for index, element in enumerate(value):
        sbid = _trimmed(element)
        if not sbid:
            raise _bad("sbid_blank", f"{path}[{index}]", "must be a text that is not blank")
        if sbid in found:
            raise _bad("sbid_duplicate", f"{path}[{index}]", f"names {sbid!r} a second time")
        found.add(sbid)
    return tuple(sorted(found))


def select_datasets(
    selection: Selection, archive: Mapping[str, Mapping[str, JsonValue]]
) -> frozenset[Dataset]:
    """The datasets that a selection is about.

    Parameters
    ----------
    selection
        What :func:`parse_sources` gave.
    archive
        By source identifier and SBID: the archived metadata, ``{"datasets": [...], ...}``.

    Raises
    ------
    DataError
        ``selected_sbids_missing``: an SBID without metadata; ``no_archive_metadata``: a source without
        any; ``archive_payload_invalid``; ``dataset_identity_missing``, ``dataset_parent_mismatch``,
        ``dataset_duplicate``.
    """
    found: set[Dataset] = set()
    for source, wanted in selection.items():
        blocks = archive.get(source, {})
        sbids = sorted(blocks) if wanted is None else wanted
        if missing := [sbid for sbid in sbids if sbid not in blocks]:
            raise _changed(
                "selected_sbids_missing",
                f"source {source!r}: selected SBIDs {', '.join(missing)} have no metadata",
            )
        if not sbids:
            raise _changed("no_archive_metadata", f"source {source!r} has no metadata at all")
        for sbid in sbids:
            for dataset in _datasets(blocks[sbid], source, sbid, "archive_payload_invalid"):
                _add(found, dataset, "dataset_duplicate")
    return frozenset(found)


def datasets_of(records: Iterable[JsonValue]) -> frozenset[Dataset]:
    """The datasets that records are about, where each is about one of its own.

    Raises
    ------
    DataError
        ``dataset_identity_missing``, ``dataset_duplicate``.
    """
    found: set[Dataset] = set()
    for record in records:
        _add(found, _identity(record), "dataset_duplicate")
    return frozenset(found)


def tells_datasets_apart(config: ProjectConfig) -> bool:
    """Whether the datasets of a survey's manifests still say which they are.

    Not so when the signature leaves their identity out, or when ``dataset_template`` does: then a manifest
    cannot be compared with what was selected.
    """
    kept = {"source_identifier", "sbid", "dataset_id", "visibility_filename"}
    kept -= set(config.signature_options.exclude_fields)
    manifest = config.manifest
    if manifest is not None and manifest.expand_from == "metadata" and manifest.dataset_template is not None:
        kept &= manifest.dataset_template.keys()
    return {"source_identifier", "sbid"} <= kept and not kept.isdisjoint(
        {"dataset_id", "visibility_filename"}
    )


def check_staged(
    records: Iterable[JsonValue], skipped: Collection[str], expected: Collection[Dataset]
) -> None:
    """Check that staging brought exactly the datasets that were selected.

    Parameters
    ----------
    records
        The dataset records after staging.
    skipped
        SBIDs that staging left out.
    expected
        What :func:`select_datasets` gave.

    Raises
    ------
    DataError
        ``staging_skipped_selected_sbids``; ``staging_changed_scope``: datasets are missing, or are there
        that nobody selected; ``dataset_identity_missing``, ``dataset_duplicate``.
    """
    selected = {dataset.sbid for dataset in expected}
    if lost := sorted(selected.intersection(skipped)):
        raise _changed(
            "staging_skipped_selected_sbids", f"staging left out the selected SBIDs {', '.join(lost)}"
        )
    _same(datasets_of(records), expected, code="staging_changed_scope", what="staging")


def check_manifest(manifest: JsonValue, expected: Collection[Dataset]) -> None:
    """Check that a manifest is about exactly the datasets that were selected.

    Several entries may be about the same source, as long as no scheduling block comes twice: a survey
    that groups by source and block has an entry for each block.

    Parameters
    ----------
    manifest
        As :func:`~beampipe_dagster.execution.manifest.build_manifest` makes it, or as a plug-in has
        changed it.
    expected
        What :func:`select_datasets` gave.

    Raises
    ------
    DataError
        ``manifest_sources_missing``, ``manifest_entry_invalid``, ``manifest_sbid_duplicate``,
        ``manifest_datasets_missing``, ``manifest_changed_scope``, ``dataset_identity_missing``,
        ``dataset_parent_mismatch``, ``dataset_duplicate``.
    """
    sources = manifest.get("sources") if isinstance(manifest, dict) else None
    if not isinstance(sources, list) or not sources:
        raise _changed("manifest_sources_missing", "the manifest has no list of sources")
    blocks: set[tuple[str, str]] = set()
    found: set[Dataset] = set()
    for source, sbid, block in _blocks(sources):
        if (source, sbid) in blocks:
            raise _changed("manifest_sbid_duplicate", f"the manifest has SBID {sbid!r} of {source!r} twice")
        blocks.add((source, sbid))
        for dataset in _datasets(block, source, sbid, "manifest_datasets_missing"):
            _add(found, dataset, "dataset_duplicate")
    _same(found, expected, code="manifest_changed_scope", what="the manifest")


def _blocks(sources: list[JsonValue]) -> Iterator[tuple[str, str, JsonValue]]:
    for index, entry in enumerate(sources):
        source = entry.get("source_identifier") if isinstance(entry, dict) else None
        blocks = entry.get("sbids") if isinstance(entry, dict) else None
        if not isinstance(source, str) or not isinstance(blocks, list) or not blocks:
            raise _changed(
                "manifest_entry_invalid",
                f"entry {index} of the manifest lacks a source_identifier or its sbids",
            )
        for block in blocks:
            sbid = block.get("sbid") if isinstance(block, dict) else None
            if not isinstance(sbid, str):
                raise _changed("manifest_entry_invalid", f"a block of {source!r} in the manifest has no sbid")
            yield source, sbid, block


def _datasets(payload: JsonValue, source: str, sbid: str, code: str) -> Iterator[Dataset]:
    datasets = payload.get("datasets") if isinstance(payload, dict) else None
    if not isinstance(datasets, list) or not datasets:
        raise _changed(code, f"SBID {sbid!r} of {source!r} has no list of datasets")
    for record in datasets:
        dataset = _identity(record)
        for name, parent, own in (
            ("source_identifier", source, dataset.source_identifier),
            ("sbid", sbid, dataset.sbid),
        ):
            if own != parent:
                raise _changed(
                    "dataset_parent_mismatch",
                    f"dataset {dataset}: its {name} {own!r} does not match the archive/manifest parent {parent!r}",
                )
        yield dataset


def _identity(record: JsonValue) -> Dataset:
    if isinstance(record, dict):
        names = (record.get("dataset_id"), record.get("visibility_filename"))
        identity = next((name for name in names if isinstance(name, str) and name.strip()), None)
        source, sbid = record.get("source_identifier"), record.get("sbid")
        if isinstance(source, str) and isinstance(sbid, str) and identity is not None:
            return Dataset(source, sbid, identity)
    raise _changed(
        "dataset_identity_missing",
        "a dataset lacks the text of its source_identifier, sbid, or dataset_id (or visibility_filename)",
    )


def _add(found: set[Dataset], dataset: Dataset, code: str) -> None:
    if dataset in found:
        raise _changed(code, f"dataset {dataset} comes twice")
    found.add(dataset)


def _same(found: Collection[Dataset], expected: Collection[Dataset], *, code: str, what: str) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise DataError(
            f"{what} changed the scope: {_listed('missing', missing)}; {_listed('not selected', extra)}",
            code=code,
            hint=_AGAIN,
            details={
                "missing": [str(dataset) for dataset in missing[:_SHOWN]],
                "extra": [str(dataset) for dataset in extra[:_SHOWN]],
                "missing_count": len(missing),
                "extra_count": len(extra),
            },
        )


def _listed(word: str, datasets: list[Dataset]) -> str:
    shown = ", ".join(str(dataset) for dataset in datasets[:_SHOWN])
    more = f", and {len(datasets) - _SHOWN} more" if len(datasets) > _SHOWN else ""
    return f"{len(datasets)} {word}" + (f" ({shown}{more})" if datasets else "")


def _trimmed(value: JsonValue) -> str:
    return value.strip() if isinstance(value, str) else ""


def _bad(code: str, path: str, message: str) -> InputError:
    return InputError(
        f"{path} {message}",
        code=code,
        hint='Give sources as [{"source_identifier": "...", "sbids": ["..."]}]; leave sbids out for all blocks.',
        details={"path": path},
    )


def _changed(code: str, message: str) -> DataError:
    return DataError(message, code=code, hint=_AGAIN)
