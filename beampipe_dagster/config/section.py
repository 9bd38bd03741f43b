"""What the models of a project file are made of: their base, and the types of their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from beampipe_dagster.config.canonical import JsonValue

UNKNOWN: Final = "unknown"
"""What an enumerated field holds when its text is none of the known ones."""

T = TypeVar("T")
Many = Annotated[tuple[T, ...], Strict(strict=False)]
"""A list in the file, a tuple in the model."""
U32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
I64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
# A limit below 1 is read, so that validation can name all of them; the schema says what is valid.
Limit = Annotated[I64, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 2**63 - 1})]


@dataclass(frozen=True)
class OneOf:
    """Text that is not known becomes :data:`UNKNOWN`, which validation reports."""

    known: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401  # any annotation
        return core_schema.no_info_before_validator_function(self._normalised, handler(source))

    def __get_pydantic_json_schema__(
        self, _core: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "enum": [*self.known]}

    def _normalised(self, value: object) -> object:
        return UNKNOWN if isinstance(value, str) and value not in self.known else value


class Section(BaseModel):
    """A part of a project: frozen, strict about types, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset()
    """Fields that the canonical form leaves out when they are empty."""

    def as_json(self) -> dict[str, JsonValue]:
        """The section as JSON: declared order, maps sorted, defaults filled in, ``None`` left out."""
        out: dict[str, JsonValue] = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if value is None or (name in self.omitted_when_empty and not value):
                continue
            out[info.alias or name] = _as_json(value)
        return out


def _as_json(value: Any) -> JsonValue:  # noqa: ANN401  # a model's field, or JSON inside of one
    if isinstance(value, Section):
        return value.as_json()
    if isinstance(value, dict):
        return {key: _as_json(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_as_json(element) for element in value]
    plain: JsonValue = value
    return plain
