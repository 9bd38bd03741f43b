"""What a TAP service says of itself: capabilities, availability and tables (VOSI 1.1, TAPRegExt 1.0)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from xml.sax.saxutils import escape, quoteattr

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.sandbox.archive.columns import FOREIGN_KEYS, Table
from beampipe_dagster.sandbox.archive.parameters import DEFAULT_MAXREC, HARD_MAXREC, MAX_UPLOAD_ROWS
from beampipe_dagster.sandbox.archive.uws import MAX_DURATION_S

_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
_NAMESPACES = (
    'xmlns:vosi="http://www.ivoa.net/xml/VOSICapabilities/v1.0" '
    'xmlns:vs="http://www.ivoa.net/xml/VODataService/v1.1" '
    f'xmlns:tr="http://www.ivoa.net/xml/TAPRegExt/v1.0" {_XSI}'
)
_GEOMETRY = ("POINT", "CIRCLE", "CONTAINS", "DISTANCE")


def capabilities(tap_url: str, sync_seconds: float) -> bytes:
    """The capabilities of the service at ``tap_url``."""
    geometry = "".join(f"<feature><form>{name}</form></feature>" for name in _GEOMETRY)
    return (
        f"{_XML}<vosi:capabilities {_NAMESPACES}>"
        '<capability standardID="ivo://ivoa.net/std/TAP" xsi:type="tr:TableAccess">'
        f'<interface xsi:type="vs:ParamHTTP" role="std" version="1.1">'
        f'<accessURL use="base">{escape(tap_url)}</accessURL></interface>'
        '<dataModel ivo-id="ivo://ivoa.net/std/ObsCore#core-1.1">ObsCore-1.1</dataModel>'
        "<language><name>ADQL</name>"
        '<version ivo-id="ivo://ivoa.net/std/ADQL#v2.0">2.0</version>'
        "<description>ADQL 2.0</description>"
        '<languageFeatures type="ivo://ivoa.net/std/TAPRegExt#features-adqlgeo">'
        f"{geometry}</languageFeatures></language>"
        '<outputFormat ivo-id="ivo://ivoa.net/std/TAPRegExt#output-votable-td">'
        "<mime>application/x-votable+xml</mime><alias>votable</alias></outputFormat>"
        '<outputFormat ivo-id="ivo://ivoa.net/std/TAPRegExt#output-votable-binary2">'
        "<mime>application/x-votable+xml;serialization=BINARY2</mime><alias>votable/b2</alias>"
        "</outputFormat>"
        "<outputFormat><mime>text/csv;header=present</mime><alias>csv</alias></outputFormat>"
        '<uploadMethod ivo-id="ivo://ivoa.net/std/TAPRegExt#upload-inline"/>'
        '<uploadMethod ivo-id="ivo://ivoa.net/std/TAPRegExt#upload-http"/>'
        "<executionDuration>"
        f"<default>{sync_seconds:.0f}</default><hard>{MAX_DURATION_S}</hard></executionDuration>"
        f'<outputLimit><default unit="row">{DEFAULT_MAXREC}</default>'
        f'<hard unit="row">{HARD_MAXREC}</hard></outputLimit>'
        f'<uploadLimit><hard unit="row">{MAX_UPLOAD_ROWS}</hard></uploadLimit>'
        "</capability>"
        + "".join(
            f'<capability standardID="ivo://ivoa.net/std/VOSI#{kind}">'
            '<interface xsi:type="vs:ParamHTTP" role="std">'
            f'<accessURL use="full">{escape(tap_url)}/{path}</accessURL></interface></capability>'
            for kind, path in (
                ("capabilities", "capabilities"),
                ("availability", "availability"),
                ("tables-1.1", "tables"),
            )
        )
        + "</vosi:capabilities>\n"
    ).encode()


def availability(up_since: datetime) -> bytes:
    """The statement that the service is up."""
    return (
        f'{_XML}<vosi:availability xmlns:vosi="http://www.ivoa.net/xml/VOSIAvailability/v1.0">'
        f"<vosi:available>true</vosi:available><vosi:upSince>{rfc3339(up_since)}</vosi:upSince>"
        "</vosi:availability>\n"
    ).encode()


def tableset(tables: Sequence[Table]) -> bytes:
    """The tables of a service with their columns."""
    schemas = dict.fromkeys(table.schema for table in tables)
    body = "".join(
        f"<schema><name>{escape(schema)}</name>"
        + "".join(_table(table) for table in tables if table.schema == schema)
        + "</schema>"
        for schema in schemas
    )
    return (
        f'{_XML}<vosi:tableset xmlns:vosi="http://www.ivoa.net/xml/VOSITables/v1.0" '
        f'xmlns:vs="http://www.ivoa.net/xml/VODataService/v1.1" {_XSI} '
        f'xsi:type="vs:TableSet">{body}</vosi:tableset>\n'
    ).encode()


def _keys(table: Table) -> str:
    return "".join(
        f"<foreignKey><targetTable>{escape(key.target_table)}</targetTable><fkColumn>"
        f"<fromColumn>{escape(key.from_column)}</fromColumn>"
        f"<targetColumn>{escape(key.target_column)}</targetColumn></fkColumn></foreignKey>"
        for key in FOREIGN_KEYS
        if key.from_table == table.adql_name
    )


def _table(table: Table) -> str:
    columns = "".join(
        f'<column std="{str(column.std).lower()}">'
        f"<name>{escape(column.adql_name)}</name><description>{escape(column.description)}</description>"
        + (f"<unit>{escape(column.unit)}</unit>" if column.unit else "")
        + (f"<ucd>{escape(column.ucd)}</ucd>" if column.ucd else "")
        + (f"<utype>{escape(column.utype)}</utype>" if column.utype else "")
        + '<dataType xsi:type="vs:VOTableType"'
        + (f" arraysize={quoteattr(column.arraysize)}" if column.arraysize else "")
        + f">{column.datatype}</dataType>"
        + ("<flag>indexed</flag>" if column.indexed else "")
        + "</column>"
        for column in table.columns
    )
    return (
        f'<table type="table"><name>{escape(table.adql_name)}</name>'
        f"<description>{escape(table.description)}</description>{columns}{_keys(table)}</table>"
    )
