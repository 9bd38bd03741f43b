"""Rows of an archive made into metadata records and flags.

The general part follows ``discovery.prepare_metadata`` of the project file. What particular
archives need beyond that is registered by the name of the query or enrichment that brings it
(:data:`ROW_CHOICES`, :data:`FLAG_SOURCES`, :data:`RECORD_FIELDS`), so that a survey without those
queries has none of it. Plug-ins bring further ones (:class:`Rules`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from beampipe_dagster.config.project import PrepareMetadata
from beampipe_dagster.discovery.transforms import (
    CALIBRATION_PREFIX,
    CALIBRATION_SUFFIX,
    NONE,
    Transformed,
    apply,
    calibration_archives,
    column,
    column_text,
    select_calibration_archive,
    text,
)
from beampipe_dagster.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.config.project import FieldMapping, ProjectConfig

    RowChoice = Callable[[str, Sequence[Mapping[str, JsonValue]]], dict[str, JsonValue] | None]
    Bringer = Callable[[JsonValue, dict[str, JsonValue]], None]

_ENRICHMENT = ("enrichments.", "enrichment.")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_CARRIED_FLAGS = ("ra_string", "dec_string", "vsys")
_VELOCITY_COLUMNS = ("RVmom", "RV50max", "RV50min")


@dataclass(frozen=True, slots=True)
class PreparedMetadata:
    """What an archive says about a source, ready to be signed and stored.

    Parameters
    ----------
    records
        One object for each row of the primary query, in the order of the rows.
    flags
        The source's discovery flags.
    """

    records: list[dict[str, JsonValue]]
    flags: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Rules:
    """What is done with the answers to queries of particular names.

    Parameters
    ----------
    row_choices
        By enrichment: which of the rows for an SBID is kept.
    flag_sources
        By query: flags that its rows bring; they are set in the mapping that is given.
    record_fields
        By enrichment: fields that its row brings into the records of its SBID, set in the record.
    """

    row_choices: Mapping[str, RowChoice]
    flag_sources: Mapping[str, Bringer]
    record_fields: Mapping[str, Bringer]

    def with_more(self, more: Rules) -> Rules:
        """These rules and others; for the same name the others count."""
        return Rules(
            {**self.row_choices, **more.row_choices},
            {**self.flag_sources, **more.flag_sources},
            {**self.record_fields, **more.record_fields},
        )


def prepare_metadata(
    config: ProjectConfig,
    source_identifier: str,
    rows: Sequence[Mapping[str, JsonValue]],
    enrichments: Mapping[str, JsonValue],
    *,
    rules: Rules | None = None,
) -> PreparedMetadata:
    """Make a source's records and flags.

    Parameters
    ----------
    config
        The project.
    source_identifier
        The source as it is registered.
    rows
        Rows of the primary query.
    enrichments
        By name: the list of rows of a further query, or ``{sbid: row}`` of an enrichment.
    rules
        For queries of particular names; the built-in ones unless given.

    Raises
    ------
    ConfigError
        ``transform_cycle`` or ``transform_too_long``.
    """
    rules = rules or BUILT_IN
    flags = discovery_flags(config, enrichments, rules=rules)
    field_map = sorted(_options(config).field_map.items())
    records = [_record(config, field_map, source_identifier, row, enrichments, flags, rules) for row in rows]
    return PreparedMetadata(records, flags)


def sbids_of(config: ProjectConfig, rows: Sequence[Mapping[str, JsonValue]]) -> list[str]:
    """The scheduling blocks that rows belong to: sorted as text, each once.

    Empty when ``field_map`` has no ``sbid``; rows whose SBID has no text are left out.
    """
    found = {_mapped_sbid(config, row) for row in rows}
    return sorted(sbid for sbid in found if sbid is not None)


def discovery_flags(
    config: ProjectConfig, enrichments: Mapping[str, JsonValue], *, rules: Rules | None = None
) -> dict[str, JsonValue]:
    """A source's flags: those of the project file, and those that its queries bring.

    A flag's ``from`` is a dotted path into ``{"enrichments": {...}}``; what is not there is
    ``null``. When the transform gives nothing, the flag keeps the raw value.
    """
    root: JsonValue = {"enrichments": dict(enrichments)}
    flags: dict[str, JsonValue] = {}
    for name, mapping in _options(config).discovery_flags.items():
        raw = _at_path(root, mapping.from_)
        value = apply(mapping.transform, raw, config.transforms)
        flags[name] = raw if value is NONE else value
    for name, bring in (rules or BUILT_IN).flag_sources.items():
        if name in enrichments:
            bring(enrichments[name], flags)
    return flags


def choose_enrichment_row(
    enrichment: str,
    sbid: str,
    rows: Sequence[Mapping[str, JsonValue]],
    *,
    rules: Rules | None = None,
) -> dict[str, JsonValue] | None:
    """The row that an enrichment keeps for an SBID.

    Parameters
    ----------
    enrichment
        Its name; :data:`ROW_CHOICES` may have a rule for it. Otherwise the first row is kept.
    sbid
        The SBID that was asked for.
    rows
        What the archive answered.
    rules
        The built-in ones unless given.

    Returns
    -------
    dict or None
        ``None`` when there is no row and the enrichment may do without.

    Raises
    ------
    DataError
        As the enrichment's rule says, see :func:`choose_calibration_archive`.
    """
    return (rules or BUILT_IN).row_choices.get(enrichment, _first_row)(sbid, rows)


def choose_calibration_archive(
    sbid: str, rows: Sequence[Mapping[str, JsonValue]]
) -> dict[str, JsonValue] | None:
    """The calibration archive of an SBID: CASDA keeps several and the largest one is the whole one.

    Raises
    ------
    DataError
        ``missing_calibration_archive``: none of the rows is one of this SBID.
        ``ambiguous_calibration_archive``: the chosen file is listed more than once.
    """
    prefix = f"{CALIBRATION_PREFIX}{sbid}_"
    own: list[JsonValue] = []
    for row in rows:
        name = column_text(row, "filename") or column_text(row, "file_name") or ""
        if name.startswith(prefix) and name.endswith(CALIBRATION_SUFFIX):
            own.append(dict(row))
    chosen = select_calibration_archive(own)
    if chosen is None:
        raise DataError(
            f"SBID {sbid}: no calibration archive among {len(rows)} rows",
            code="missing_calibration_archive",
            hint=f"The archive must list {prefix}*{CALIBRATION_SUFFIX} with format 'calibration', "
            "a size and an access URL.",
            details={"sbid": sbid, "rows": len(rows)},
        )
    names = [name for _, name, _ in calibration_archives(own)]
    winner = column_text(chosen, "filename") or column_text(chosen, "file_name") or ""
    if names.count(winner) > 1:
        raise DataError(
            f"SBID {sbid}: the archive lists {winner} {names.count(winner)} times",
            code="ambiguous_calibration_archive",
            hint="Which of them is meant cannot be told; ask the archive to withdraw the others.",
            details={"sbid": sbid, "filename": winner, "times": names.count(winner)},
        )
    return chosen


def ra_text(degrees: float) -> str:
    """Right ascension in hours, minutes and seconds of time, e.g. ``13h13m34.08s``.

    Parameters
    ----------
    degrees
        Any angle; it is brought into 0 to 360 degrees first.

    Returns
    -------
    str
        Seconds are rounded to hundredths, halves away from zero, and are below 60.
    """
    turned = degrees if 0 <= degrees < 360 else math.fmod(math.fmod(degrees, 360) + 360, 360)
    hours, minutes, seconds = _sexagesimal(turned / 15)
    return f"{hours % 24}h{minutes}m{_shortest(seconds)}s"


def dec_text(degrees: float) -> str:
    """Declination in degrees, arc minutes and arc seconds, e.g. ``-15.27.32.04``.

    The sign stays when the degrees are 0 (``-0.30.0`` is half a degree south); arc seconds are
    rounded to hundredths, halves away from zero, and are below 60.
    """
    whole, minutes, seconds = _sexagesimal(abs(degrees))
    sign = "-" if degrees < 0 and (whole or minutes or seconds) else ""
    return f"{sign}{whole}.{minutes}.{_shortest(seconds)}"


def _record(
    config: ProjectConfig,
    field_map: Sequence[tuple[str, FieldMapping]],
    source_identifier: str,
    row: Mapping[str, JsonValue],
    enrichments: Mapping[str, JsonValue],
    flags: Mapping[str, JsonValue],
    rules: Rules,
) -> dict[str, JsonValue]:
    record: dict[str, JsonValue] = {}
    for target, mapping in field_map:
        raw = _mapped(config, mapping.from_, source_identifier, row, enrichments)
        value = NONE if raw is NONE else apply(mapping.transform, raw, config.transforms)
        if value is not NONE:
            record[target] = value
    record.setdefault("source_identifier", source_identifier)
    names = _lowered(tuple(row))
    if len(names) == len(row):
        # What is mapped comes first and wins.
        record = {**record, **dict(zip(names, row.values(), strict=True)), **record}
    else:  # columns that differ by case only: the first of them counts
        for name, cell in row.items():
            record.setdefault(name.lower(), cell)
    sbid = text(record.get("sbid"))
    for name, by_sbid in sorted(enrichments.items()):
        if sbid is not None and isinstance(by_sbid, dict) and sbid in by_sbid:
            record[name] = by_sbid[sbid]
    for name, add in rules.record_fields.items():
        if name in record:
            add(record[name], record)
    record.update({name: flags[name] for name in _CARRIED_FLAGS if name in flags})
    return record


@lru_cache(maxsize=256)
def _lowered(names: tuple[str, ...]) -> tuple[str, ...]:
    """The lower-case names of columns, each once."""
    return tuple(dict.fromkeys(name.lower() for name in names))


def _mapped(
    config: ProjectConfig,
    origin: str,
    source_identifier: str,
    row: Mapping[str, JsonValue],
    enrichments: Mapping[str, JsonValue],
) -> Transformed:
    """The raw value of a ``field_map`` entry's ``from``."""
    if origin == "source_identifier":
        return source_identifier
    prefix = next((text for text in _ENRICHMENT if origin.startswith(text)), None)
    if prefix is None:
        return column(row, origin)
    raw = column_text(row, "sbid") or column_text(row, "obs_id")
    # Enrichments are kept by the mapped SBID (`72962`); a raw one (`ASKAP-72962`) seldom is that.
    keys = [key for key in (raw, _mapped_sbid(config, row)) if key is not None]
    if not keys:
        return NONE
    by_sbid = enrichments.get(origin.removeprefix(prefix))
    if isinstance(by_sbid, dict):
        return next((by_sbid[key] for key in keys if key in by_sbid), None)
    return None


def _mapped_sbid(config: ProjectConfig, row: Mapping[str, JsonValue]) -> str | None:
    mapping = _options(config).field_map.get("sbid")
    if mapping is None:
        return None
    raw = column(row, mapping.from_)
    value = NONE if raw is NONE else apply(mapping.transform, raw, config.transforms)
    return None if value is NONE else text(value)


def _options(config: ProjectConfig) -> PrepareMetadata:
    return config.discovery.prepare_metadata or PrepareMetadata()


def _at_path(root: JsonValue, path: str) -> JsonValue:
    found = root
    for part in path.split("."):
        if not isinstance(found, dict) or part not in found:
            return None
        found = found[part]
    return found


def _first_row(_sbid: str, rows: Sequence[Mapping[str, JsonValue]]) -> dict[str, JsonValue] | None:
    return dict(rows[0]) if rows else None


def _position_flags(found: JsonValue, flags: dict[str, JsonValue]) -> None:
    """Position and velocity of the first row of a catalogue query, as the pipelines want them.

    Positions in degrees become text and win over a configured flag; what is text already is taken
    as it is, unless a flag of the project file has that name.
    """
    row = found[0] if isinstance(found, list) and found else None
    if not isinstance(row, dict):
        return
    for flag, names, written in (
        ("ra_string", ("RAJ2000", "ra_j2000"), ra_text),
        ("dec_string", ("DEJ2000", "dec_j2000"), dec_text),
    ):
        value = next((cell for name in names if (cell := column_text(row, name))), None)
        degrees = None if value is None else _number(value)
        if degrees is not None:
            flags[flag] = written(degrees)
        elif value is not None:
            flags.setdefault(flag, value)
    for name in _VELOCITY_COLUMNS:
        velocity = column(row, name)
        if velocity is not NONE and text(velocity) is not None:
            flags.setdefault("vsys", velocity)
            return


def _evaluation_fields(row: JsonValue, record: dict[str, JsonValue]) -> None:
    """The calibration archive's URL and name, where staging looks for them."""
    if not isinstance(row, dict):
        return
    url = column(row, "access_url")
    if url is not NONE:
        record["evaluation_file_access_url"] = url
    name = column(row, "filename")
    name = column(row, "file_name") if name is NONE else name
    if name is not NONE:
        record.setdefault("evaluation_file", name)


ROW_CHOICES: Final[dict[str, RowChoice]] = {"sbid_to_eval_file": choose_calibration_archive}
"""By enrichment: which of the rows for an SBID is kept."""

FLAG_SOURCES: Final[dict[str, Bringer]] = {"ra_dec_vsys": _position_flags}
"""By query: flags that its rows bring."""

RECORD_FIELDS: Final[dict[str, Bringer]] = {"sbid_to_eval_file": _evaluation_fields}
"""By enrichment: fields that its row brings into the records of its SBID."""

BUILT_IN: Final = Rules(ROW_CHOICES, FLAG_SOURCES, RECORD_FIELDS)
"""The rules that hold for every survey that has queries of those names: WALLABY's."""


def _number(value: str) -> float | None:
    if not _NUMBER.fullmatch(value):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _sexagesimal(value: float) -> tuple[int, int, float]:
    """A value that is not negative as units, minutes, and seconds rounded to hundredths."""
    units = math.trunc(value)
    minutes = math.trunc((value - units) * 60)
    rest = (value - units - minutes / 60) * 3600
    hundredths = math.floor(rest * 100 + 0.5)
    # Rounding up can fill a minute, and that a unit: 59.999 s are 60, which is no reading.
    carried, hundredths = divmod(hundredths, 6000)
    carried, minutes = divmod(minutes + carried, 60)
    return units + carried, minutes, hundredths / 100


def _shortest(seconds: float) -> str:
    return f"{seconds:.2f}".rstrip("0").rstrip(".")
