"""The tables that the two archives publish: names, types, units and UCDs of their columns.

``ivoa.obscore`` is ObsCore 1.1 with the columns by which CASDA extends it; the evaluation files are CASDA's
own table; ``"VIII/73/hicat"`` is VizieR's spelling of the HIPASS catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Datatype = Literal["char", "unicodeChar", "short", "int", "long", "float", "double", "boolean"]
Archive = Literal["casda", "vizier"]
Cell = str | int | float | bytes | None
Row = tuple[Cell, ...]

ARCHIVES: tuple[Archive, ...] = ("casda", "vizier")

_RESERVED = frozenset({"size"})
_STORAGE: dict[Datatype, str] = {
    "char": "TEXT",
    "unicodeChar": "TEXT",
    "short": "INTEGER",
    "int": "INTEGER",
    "long": "INTEGER",
    "boolean": "INTEGER",
    "float": "REAL",
    "double": "REAL",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table or of an answer, as a VOTable FIELD describes it."""

    name: str
    datatype: Datatype
    unit: str = ""
    ucd: str = ""
    description: str = ""
    indexed: bool = False
    std: bool = False
    utype: str = ""
    xtype: str = ""

    @property
    def adql_name(self) -> str:
        """The name as a query spells it: in quotes where ADQL has reserved the word."""
        return f'"{self.name}"' if self.name in _RESERVED else self.name

    @property
    def arraysize(self) -> str | None:
        """``*`` for text, None for numbers."""
        return "*" if self.datatype in {"char", "unicodeChar"} else None

    @property
    def storage(self) -> str:
        """The type of the column in SQLite."""
        return _STORAGE[self.datatype]


@dataclass(frozen=True, slots=True)
class Table:
    """A published table.

    Parameters
    ----------
    schema
        The schema, which is also the name of its SQLite file.
    name
        The table's name without quotes, as SQLite knows it.
    adql_name
        The name as a query spells it.
    archive
        The archive that publishes it; None for ``tap_schema``, which each archive has of its own.
    """

    schema: str
    name: str
    adql_name: str
    archive: Archive | None
    description: str
    columns: tuple[Column, ...]

    @property
    def sql_name(self) -> str:
        """The quoted, qualified name for SQLite."""
        return f'"{self.schema}"."{self.name}"'

    def ddl(self) -> list[str]:
        """Statements that create the table and its indexes where they are missing."""
        body = ", ".join(f'"{column.name}" {column.storage}' for column in self.columns)
        statements = [f"CREATE TABLE IF NOT EXISTS {self.sql_name} ({body}) STRICT"]
        for column in self.columns:
            if column.indexed:
                index = f'"{self.schema}"."ix_{self.name}_{column.name}"'
                statements.append(f'CREATE INDEX IF NOT EXISTS {index} ON "{self.name}" ("{column.name}")')
        return statements


def _columns(text: str) -> tuple[Column, ...]:
    """Columns from lines ``name | datatype | unit | ucd | description``; ``+`` indexed, ``=`` standard."""
    out = []
    for line in text.strip().splitlines():
        flagged, datatype, unit, ucd, description = (part.strip() for part in line.split("|"))
        name = flagged.rstrip("+=")
        flags = flagged[len(name) :]
        kind: Datatype = next(known for known in _STORAGE if known == datatype)
        out.append(Column(name, kind, unit, ucd, description, "+" in flags, "=" in flags))
    return tuple(out)


# Table 5 of ObsCore 1.1, below the prefix obscore:.
_OBSCORE_UTYPES = dict(
    line.split()
    for line in """
dataproduct_type ObsDataset.dataProductType
calib_level ObsDataset.calibLevel
obs_collection DataID.Collection
obs_id DataID.observationID
obs_publisher_did Curation.PublisherDID
access_url Access.Reference
access_format Access.Format
access_estsize Access.Size
target_name Target.Name
s_ra Char.SpatialAxis.Coverage.Location.Coord.Position2D.Value2.C1
s_dec Char.SpatialAxis.Coverage.Location.Coord.Position2D.Value2.C2
s_fov Char.SpatialAxis.Coverage.Bounds.Extent.diameter
s_region Char.SpatialAxis.Coverage.Support.Area
s_resolution Char.SpatialAxis.Resolution.Refval.value
t_min Char.TimeAxis.Coverage.Bounds.Limits.StartTime
t_max Char.TimeAxis.Coverage.Bounds.Limits.StopTime
t_exptime Char.TimeAxis.Coverage.Support.Extent
t_resolution Char.TimeAxis.Resolution.Refval.value
em_min Char.SpectralAxis.Coverage.Bounds.Limits.LoLimit
em_max Char.SpectralAxis.Coverage.Bounds.Limits.HiLimit
em_res_power Char.SpectralAxis.Resolution.ResolPower.refVal
o_ucd Char.ObservableAxis.ucd
pol_states Char.PolarizationAxis.stateList
facility_name Provenance.ObsConfig.facility.name
instrument_name Provenance.ObsConfig.instrument.name
s_xel1 Char.SpatialAxis.numBins1
s_xel2 Char.SpatialAxis.numBins2
t_xel Char.TimeAxis.numBins
em_xel Char.SpectralAxis.numBins
pol_xel Char.PolarizationAxis.numBins
dataproduct_subtype ObsDataset.dataProductSubtype
obs_release_date Curation.releaseDate
s_ucd Char.SpatialAxis.ucd
s_unit Char.SpatialAxis.unit
s_resolution_min Char.SpatialAxis.Resolution.Bounds.Limits.LoLimit
s_resolution_max Char.SpatialAxis.Resolution.Bounds.Limits.HiLimit
em_ucd Char.SpectralAxis.ucd
em_unit Char.SpectralAxis.unit
em_resolution Char.SpectralAxis.Resolution.refval.value
""".strip().splitlines()
)


def _with_utypes(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    return tuple(
        replace(column, utype=f"obscore:{_OBSCORE_UTYPES[column.name]}")
        if column.name in _OBSCORE_UTYPES
        else column
        for column in columns
    )


OBSCORE = Table(
    "ivoa",
    "obscore",
    "ivoa.obscore",
    "casda",
    "Observations: ObsCore 1.1 with file names and quality",
    _with_utypes(
        _columns("""
dataproduct_type= | char | | meta.code.class | Kind of data product
calib_level= | int | | meta.code;obs.calib | Calibration level, 0 to 4
obs_collection= | char | | meta.id | Name of the data collection
obs_id= | char | | meta.id | Identifier of the observation: ASKAP-<scheduling block>
obs_publisher_did=+ | char | | meta.ref.ivoid | Identifier given by the publisher
access_url= | char | | meta.ref.url | Where the data can be asked for
access_format= | char | | meta.code.mime | Format of what the access URL returns
access_estsize= | long | kbyte | phys.size;meta.file | Estimated size of the data
target_name= | char | | meta.id;src | Name of the observed field
s_ra= | double | deg | pos.eq.ra | Central right ascension, ICRS
s_dec= | double | deg | pos.eq.dec | Central declination, ICRS
s_fov= | double | deg | phys.angSize;instr.fov | Diameter of the covered region
s_region= | char | | pos.outline;obs.field | Covered region as an STC-S string
s_resolution= | double | arcsec | pos.angResolution | Angular resolution
s_xel1= | long | | meta.number | Elements along the first spatial axis
s_xel2= | long | | meta.number | Elements along the second spatial axis
t_min= | double | d | time.start;obs.exposure | Start, MJD
t_max=+ | double | d | time.end;obs.exposure | End, MJD
t_exptime= | double | s | time.duration;obs.exposure | Total exposure time
t_resolution= | double | s | time.resolution | Temporal resolution
t_xel= | long | | meta.number | Elements along the time axis
em_min= | double | m | em.wl;stat.min | Start in wavelength
em_max= | double | m | em.wl;stat.max | End in wavelength
em_res_power= | double | | spect.resolution | Spectral resolving power
em_xel= | long | | meta.number | Elements along the spectral axis
o_ucd= | char | | meta.ucd | UCD of the observable
pol_states= | char | | meta.code;phys.polarization | Polarisation states
pol_xel= | long | | meta.number | Elements along the polarisation axis
facility_name= | char | | meta.id;instr.tel | Telescope
instrument_name= | char | | meta.id;instr | Instrument
dataproduct_subtype | char | | meta.code.class | Finer kind of data product
em_ucd | char | | meta.ucd | UCD of the spectral axis
em_unit | char | | meta.unit | Unit of the spectral axis
em_resolution | double | m | spect.resolution;stat.mean | Spectral resolution
s_resolution_min | double | arcsec | pos.angResolution;stat.min | Finest angular resolution
s_resolution_max | double | arcsec | pos.angResolution;stat.max | Coarsest angular resolution
s_ucd | char | | meta.ucd | UCD of the spatial axes
s_unit | char | | meta.unit | Unit of the spatial axes
obs_release_date | char | | time.release | When the data became public, UTC
quality_level | char | | meta.code.qual | What the quality check said
thumbnail_id | long | | meta.id | Identifier of a preview image
filename+ | char | | meta.id;meta.file | Name of the file
filesize | long | byte | phys.size;meta.file | Size of the file
""")
    ),
)

EVALUATION_FILE = Table(
    "casda",
    "observation_evaluation_file",
    "casda.observation_evaluation_file",
    "casda",
    "Files about the quality and the calibration of an observation",
    _columns("""
id | long | | meta.id;meta.main | Identifier of the file
sbid+ | long | | meta.id;obs | Scheduling block
project_code | char | | meta.id | Code of the project
format | char | | meta.code | What the file is
filename | char | | meta.id;meta.file | Name of the file
filesize | long | byte | phys.size;meta.file | Size of the file
access_url | char | | meta.ref.url | Where the file can be asked for
released_date | char | | time.release | When the file became public, UTC
observation_id | long | | meta.id;obs | Identifier of the observation
project_id | long | | meta.id | Identifier of the project
"""),
)

HICAT = Table(
    "vizier",
    "VIII/73/hicat",
    '"VIII/73/hicat"',
    "vizier",
    "HIPASS sources: positions and radial velocities",
    _columns("""
recno | int | | meta.record | Record number
HIPASS+ | char | | meta.id;meta.main | Name without the prefix HIPASS
RAJ2000 | double | deg | pos.eq.ra;meta.main | Right ascension, J2000
DEJ2000 | double | deg | pos.eq.dec;meta.main | Declination, J2000
RV50max | double | km/s | phys.veloc;stat.max | Velocity at half of the peak, high side
RV50min | double | km/s | phys.veloc;stat.min | Velocity at half of the peak, low side
RVmom | double | km/s | phys.veloc;pos.heliocentric | Flux-weighted mean velocity
"""),
)

TABLES: tuple[Table, ...] = (OBSCORE, EVALUATION_FILE, HICAT)


def _tap_schema(name: str, description: str, columns: str) -> Table:
    return Table("tap_schema", name, f"tap_schema.{name}", None, description, _columns(columns))


TAP_SCHEMA: tuple[Table, ...] = (
    _tap_schema(
        "schemas",
        "Schemas of this service",
        """
schema_name= | char | | | Name of the schema
utype= | char | | | Data model
description= | char | | | What the schema holds
schema_index= | int | | | Recommended order
""",
    ),
    _tap_schema(
        "tables",
        "Tables of this service",
        """
schema_name= | char | | | Name of the schema
table_name= | char | | | Name as a query spells it
table_type= | char | | | table or view
utype= | char | | | Data model
description= | char | | | What the table holds
table_index= | int | | | Recommended order
""",
    ),
    _tap_schema(
        "columns",
        "Columns of this service",
        """
table_name= | char | | | Name of the table
column_name= | char | | | Name of the column
utype= | char | | | Data model
ucd= | char | | | UCD
unit= | char | | | Unit
description= | char | | | What the column holds
datatype= | char | | | VOTable datatype
arraysize= | char | | | VOTable arraysize
xtype= | char | | | VOTable xtype
size= | int | | | Deprecated form of arraysize
principal= | int | | | 1 for a main column
indexed= | int | | | 1 for an indexed column
std= | int | | | 1 for a column of a standard
column_index= | int | | | Recommended order
""",
    ),
    _tap_schema(
        "keys",
        "Foreign keys of this service",
        """
key_id= | char | | | Identifier of the key
from_table= | char | | | Referring table
target_table= | char | | | Table referred to
utype= | char | | | Data model
description= | char | | | What the key means
""",
    ),
    _tap_schema(
        "key_columns",
        "Columns of the foreign keys",
        """
key_id= | char | | | Identifier of the key
from_column= | char | | | Referring column
target_column= | char | | | Column referred to
""",
    ),
)


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A column of one table that refers to one of another, in ``tap_schema`` itself."""

    key_id: str
    from_table: str
    from_column: str
    target_table: str
    target_column: str


FOREIGN_KEYS: tuple[ForeignKey, ...] = tuple(
    ForeignKey(str(number), f"tap_schema.{source}", column, f"tap_schema.{target}", target_column)
    for number, (source, column, target, target_column) in enumerate(
        [
            ("tables", "schema_name", "schemas", "schema_name"),
            ("columns", "table_name", "tables", "table_name"),
            ("keys", "from_table", "tables", "table_name"),
            ("keys", "target_table", "tables", "table_name"),
            ("key_columns", "key_id", "keys", "key_id"),
        ],
        1,
    )
)
"""The keys that TAP 1.1 (section 4) gives ``tap_schema``."""


def tables_of(archive: Archive) -> tuple[Table, ...]:
    """What an archive publishes: its own tables, then ``tap_schema``."""
    return tuple(table for table in TABLES if table.archive == archive) + TAP_SCHEMA
