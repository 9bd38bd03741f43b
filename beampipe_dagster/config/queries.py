"""What a project file says about the archives' queries and about what is made of the answers.

A part of :mod:`beampipe_dagster.config.project`, which is where others import it from.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from beampipe_dagster.config.section import U32, Limit, Many, OneOf, Section

MATCH_WAYS: Final = ("equals", "prefix", "contains")
"""How a column can be matched with a source."""
BATCH_FORMS: Final = ("auto", "or", "in", "upload", "none")
"""How a query can be asked for many sources."""
MATCH_PLACE: Final = "{match}"
"""Where the conditions that ``match`` describes go in a template."""


def _name_or_names(value: object) -> object:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise PydanticCustomError("transform_type", "the name of a transform, or a list of names")


TransformRef = Annotated[
    Any,
    BeforeValidator(_name_or_names),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}
    ),
]


class _Short:
    """A field that may be given in a shorter way; the JSON Schema tells all of them.

    Parameters
    ----------
    longer
        Makes of the short form what the model reads, and leaves everything else as it is.
    short
        JSON Schema of the short forms.
    """

    def __init__(self, longer: Any, *short: dict[str, Any]) -> None:  # noqa: ANN401  # a function over any JSON
        self._longer = longer
        self._short = short

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401  # any annotation
        return core_schema.no_info_before_validator_function(self._longer, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        inner = handler(core)
        items = [inner["items"]] if "items" in inner else []
        options = inner.get("anyOf", [inner])
        return {"anyOf": [*items, *self._short, *options]}


_LONG_MATCH: Final = frozenset({"column", "value", "how"})
_TEXTS: Final = {"type": "object", "additionalProperties": {"type": "string"}}


def _matches(value: object) -> object:
    """``{column: template}`` and a single match as the list that they stand for."""
    if not isinstance(value, dict):
        return value
    if "column" in value or set(value) <= _LONG_MATCH:
        return [value]
    return [{"column": column, "value": template} for column, template in value.items()]


def _batch(value: object) -> object:
    return {"form": value} if isinstance(value, str) else value


def _values(value: object) -> object:
    return [value] if isinstance(value, str) else value


MatchWay = Annotated[str, OneOf(MATCH_WAYS)]
BatchForm = Annotated[str, OneOf(BATCH_FORMS)]
Values = Annotated[Many[str], _Short(_values)]


class QueryMatch(Section):
    """A column by which rows belong to a source."""

    column: str = Field(description="The column, as ADQL writes it, such as filename or o.filename")
    value: str = Field(
        description="What it is compared with, literally; {name} is filled in with a template variable"
    )
    how: MatchWay = Field(
        "equals", description="Whether the column is that text, begins with it, or holds it"
    )


class QueryKeep(Section):
    """Which rows of an answer are kept, for one source."""

    omitted_when_empty = frozenset({"where", "per"})

    where: dict[str, Values] = Field(
        {}, description="By column of the answer: the text, or one of the texts, that it must be"
    )
    latest: str | None = Field(
        None, description="Column of whose values only the greatest is kept: numbers, or ISO 8601 times"
    )
    per: Many[str] = Field(
        (), description="Columns; the greatest of each combination of their values is kept"
    )


class QueryBatch(Section):
    """How a query is asked for many sources."""

    form: BatchForm = Field(
        "auto",
        description="auto chooses; or and in are asked in that form only; upload sends a table, where the archive "
        "takes one, whatever the number of sources; none asks source by source",
    )
    size: Limit | None = Field(None, description="Sources that one request asks for, at most")


class Watermark(Section):
    """How new rows are found for all sources with one query."""

    column: str = Field(description="Column that grows with new rows: an ISO 8601 time, or days (MJD)")
    lag_hours: U32 = Field(
        24, description="How far before the newest row is looked again, for rows that come late"
    )
    every_minutes: Limit = Field(15, description="How often the archive is asked")


class Query(Section):
    """An ADQL template for one archive."""

    omitted_when_empty = frozenset({"match"})

    name: str = Field(description="What its rows are called elsewhere in this file")
    adapter: str = Field(description="The archive that is asked")
    template: str = Field(
        description="ADQL; {name} is filled in with a template variable, {match} with what match says"
    )
    source_id_transform: str | None = Field(
        None, description="Makes {source_name} of the source identifier, from this query on"
    )
    match: Annotated[Many[QueryMatch], _Short(_matches, _TEXTS)] = Field(
        (), description="By which columns rows belong to a source; goes where the template says {match}"
    )
    keep: QueryKeep | None = Field(
        None, description="Which rows of an answer are kept; all of them when absent"
    )
    batch: Annotated[QueryBatch | None, _Short(_batch, {"type": "string", "enum": [*BATCH_FORMS]})] = Field(
        None, description="How it is asked for many sources; absent as auto"
    )
    watermark: Watermark | None = Field(
        None, description="How new rows are found for all sources at once; absent means by looking at each"
    )

    @property
    def adql_template(self) -> str:
        """The template with the conditions of ``match`` in their place: all that is left are variables."""
        if not self.match:
            return self.template
        conditions = " AND ".join(_condition(one) for one in self.match)
        text = f"({conditions})" if len(self.match) > 1 else conditions
        return self.template.replace(MATCH_PLACE, text)


def _condition(match: QueryMatch) -> str:
    value = match.value.replace("'", "''")
    if match.how == "equals":
        return f"{match.column} = '{value}'"
    return f"{match.column} LIKE '{'%' if match.how == 'contains' else ''}{value}%'"


class FieldMapping(Section):
    """Where a metadata field or a flag comes from."""

    from_: str = Field(
        default="",
        alias="from",
        description="Column of the row; for a flag, a dotted path such as enrichments.NAME",
    )
    transform: TransformRef = Field(
        None, description="Name of a transform, or a list of names that are applied in order"
    )

    @property
    def transform_names(self) -> tuple[str, ...]:
        """The names of the transforms, in order; none for a value that passes through."""
        if self.transform is None:
            return ()
        return (self.transform,) if isinstance(self.transform, str) else tuple(self.transform)


class SignatureOptions(Section):
    """What of the metadata the discovery signature covers. Unknown fields are tolerated here."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    omitted_when_empty = frozenset({"exclude_fields"})

    exclude_fields: Many[str] = Field(
        (), description="Fields that may change without a new signature, at any depth"
    )
    include_discovery_flags: bool = Field(True, description="Whether the discovery flags count")


class PrepareMetadata(Section):
    """How archive rows become metadata."""

    field_map: dict[str, FieldMapping] = Field(
        {}, description="By field of the metadata record: where its value comes from"
    )
    discovery_flags: dict[str, FieldMapping] = Field(
        {}, description="By flag of the source: where its value comes from"
    )
    signature: SignatureOptions | None = Field(None, description="What the discovery signature covers")


class Discovery(Section):
    """What to ask the archives, and what to make of the answers."""

    queries: Many[Query] = Field(
        (), description="Once a source; the first lists its datasets, the others add rows by name"
    )
    enrichments: Many[Query] = Field(
        (), description="Once a scheduling block ({sbid}); the row joins the records"
    )
    prepare_metadata: PrepareMetadata | None = Field(
        None, description="How rows become metadata records, flags and a signature"
    )
