"""A survey's project file as frozen models, its canonical form and its digest.

The models are the structure only: they refuse unknown fields and wrong types, and fill defaults in.
Whether the values make sense together is for :mod:`beampipe_dagster.config.validation`.

The digest is over the *typed* project, so that comments, key order and defaults that are spelled
out do not change it: fields in the order in which they are declared here, maps by sorted key,
optional fields that are not set left out. The order of the fields below is therefore part of the
format.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from beampipe_dagster.config.canonical import JsonValue, ordered_json, sha256_hex
from beampipe_dagster.config.diagnostics import dotted, structure_problems
from beampipe_dagster.errors import ConfigError

API_VERSION: Final = "beampipe.dev/v2"
"""The one version whose files are valid."""
KIND: Final = "ProjectConfig"
"""The one kind of file."""
INVENTORY_SCHEMA: Final = "wallaby-hires-output-inventory/v1"
"""The one schema of output inventories that is known."""
UNKNOWN: Final = "unknown"
"""What an enumerated field holds when its text is none of the known ones."""
TRANSFORM_KINDS: Final = (
    "identity",
    "trim",
    "lowercase",
    "uppercase",
    "replace",
    "add_prefix",
    "add_suffix",
    "strip_prefix",
    "default_if_empty",
    "extract_digits",
    "split_last",
    "is_present",
    "select_eval_file_by_size",
    "regex_extract",
    "chain",
)
"""What a transform can do."""
OWN_MATCH_FIELDS: Final = {
    "node_id": ("id",),
    "node_name_index": ("name", "index"),
    "category": ("category",),
    "field_value": ("field", "value"),
}
"""The kinds of match beside ``node_name``, each with the fields that it needs."""
MATCH_KINDS: Final = ("node_name", *OWN_MATCH_FIELDS)
"""What a graph patch can look for."""
MATCH_COUNTS: Final = ("one", "many")
"""How many nodes a graph patch may reach."""
HOOKS: Final = ("prepare_metadata", "manifest", "graph_patches")
"""Where an extension can be called."""

T = TypeVar("T")
Many = Annotated[tuple[T, ...], Strict(strict=False)]
"""A list in the file, a tuple in the model."""
U32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
I64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


def _one_of(*known: str) -> BeforeValidator:
    """Text that is not known becomes :data:`UNKNOWN`, which validation reports."""

    def normalise(value: object) -> object:
        return UNKNOWN if isinstance(value, str) and value not in known else value

    return BeforeValidator(normalise)


def _name_or_names(value: object) -> object:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise PydanticCustomError("transform_type", "the name of a transform, or a list of names")


TransformKind = Annotated[str, _one_of(*TRANSFORM_KINDS)]
MatchKind = Annotated[str, _one_of(*MATCH_KINDS)]
MatchCount = Annotated[str, _one_of(*MATCH_COUNTS)]
Hook = Annotated[str, _one_of(*HOOKS)]
TransformRef = Annotated[Any, BeforeValidator(_name_or_names)]


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


class Metadata(Section):
    """Who the survey is."""

    id: str
    description: str | None = None


class TapLimits(Section):
    """How the archives' TAP services are asked."""

    timeout_seconds: U64 = 30
    retries: U32 = 1
    fail_open: bool = False


class AuthEnv(Section):
    """Names of the environment variables that hold an archive's credentials; never the credentials.

    Either ``user`` and ``password`` (HTTP basic authentication) or ``token`` (a bearer token).
    """

    user: str | None = None
    password: str | None = None
    token: str | None = None


class AdapterDefinition(Section):
    """A TAP service that the survey names itself."""

    tap_url: str
    auth_env: AuthEnv | None = None
    maxrec: U32 | None = None
    timeout_seconds: U32 | None = None


class Adapters(Section):
    """The archives that the survey needs."""

    omitted_when_empty = frozenset({"definitions"})

    required: Many[str] = ()
    casda_tap_url: str | None = None
    vizier_tap_url: str | None = None
    tap: TapLimits = TapLimits()
    definitions: dict[str, AdapterDefinition] = {}


class GraphSource(Section):
    """The logical graph: a file or a URL, and the digest that its bytes must have."""

    url: str | None = None
    path: str | None = None
    sha256: str | None = None


class Query(Section):
    """An ADQL template for one archive."""

    name: str
    adapter: str
    template: str
    source_id_transform: str | None = None


class FieldMapping(Section):
    """Where a metadata field or a flag comes from."""

    from_: str = Field(default="", alias="from")
    transform: TransformRef = None

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

    exclude_fields: Many[str] = ()
    include_discovery_flags: bool = True


class PrepareMetadata(Section):
    """How archive rows become metadata."""

    field_map: dict[str, FieldMapping] = {}
    discovery_flags: dict[str, FieldMapping] = {}
    signature: SignatureOptions | None = None


class Discovery(Section):
    """What to ask the archives, and what to make of the answers."""

    queries: Many[Query] = ()
    enrichments: Many[Query] = ()
    prepare_metadata: PrepareMetadata | None = None


class Manifest(Section):
    """The shape of the workflow manifest."""

    group_by: Many[str] = ()
    source_template: dict[str, Any] = {}
    dataset_template: dict[str, Any] | None = None
    expand_from: str | None = None
    path: str = "manifest.json"


class GraphPatchMatch(Section):
    """Which nodes of the graph a patch is for.

    ``node_name`` looks for the name in ``equals``. Each other kind has fields of its own
    (:data:`OWN_MATCH_FIELDS`); with none of them given it is unknown, as it was before it came, so
    that no document changes its meaning or its digest.

    Parameters
    ----------
    equals
        ``node_name``: the name.
    id
        ``node_id``: the node's id.
    name, index
        ``node_name_index``: the name, and which of the nodes of that name, from 0 on.
    category
        ``category``: the node's category, e.g. ``Scatter``.
    field, value
        ``field_value``: the name of a field, and the value that it has in the graph.
    count
        How many nodes may match; see :attr:`may_be_many`.
    """

    kind: MatchKind = UNKNOWN
    equals: str = ""
    id: str | None = None
    name: str | None = None
    index: U32 | None = None
    category: str | None = None
    field: str | None = None
    value: Any = None
    count: MatchCount | None = None

    @model_validator(mode="before")
    @classmethod
    def _own_kinds_have_own_fields(cls, value: object) -> object:
        if isinstance(value, dict):
            own = OWN_MATCH_FIELDS.get(kind) if isinstance(kind := value.get("kind"), str) else None
            if own is not None and all(value.get(name) is None for name in own):
                return {**value, "kind": UNKNOWN}
        return value

    @property
    def may_be_many(self) -> bool:
        """Whether several nodes may match: as ``count`` says, else for ``node_name`` only."""
        return self.count == "many" if self.count else self.kind not in OWN_MATCH_FIELDS

    def as_json(self) -> dict[str, JsonValue]:
        """The match as JSON; ``equals`` only where it is the kind's field or is given."""
        out = super().as_json()
        if self.kind in OWN_MATCH_FIELDS and not self.equals:
            del out["equals"]
        return out


class GraphPatch(Section):
    """Fields to set in matching nodes; a text ``$count(...)`` or ``$sum(...)`` is computed."""

    match: GraphPatchMatch
    set_: dict[str, Any] = Field(default={}, alias="set")


class OutputVerification(Section):
    """Whether an execution must prove its products."""

    required: bool = False
    inventory_schema: str = INVENTORY_SCHEMA


class ExecutionAutomation(Section):
    """When and how much is executed without being asked."""

    enabled: bool = False
    archive_name: str = "casda"
    max_sources_per_execution: I64 = 20
    tick_execution_source_limit: I64 = 500
    tick_execution_run_limit: I64 = 20
    min_sources_to_trigger: I64 = 1
    max_wait_minutes: I64 = 1440
    claim_ttl_minutes: I64 = 180
    concurrent_execution_run_limit: I64 | None = None
    deployment_profile_name: str | None = None
    execution_slurm_remote_poll_max_rounds: I64 | None = None
    execution_rest_remote_poll_max_rounds: I64 | None = None
    execution_rest_remote_poll_interval_seconds: float | None = None
    execution_slurm_remote_poll_interval_seconds: float | None = None


class DiscoveryAutomation(Section):
    """When and how much is discovered without being asked."""

    enabled: bool = False
    tick_discovery_source_limit: I64 = 200
    batch_size: I64 = 5
    stale_after_hours: I64 = 24
    claim_ttl_minutes: I64 = 180
    queue_max_depth: I64 | None = None
    tick_discovery_batch_limit: I64 | None = None
    concurrent_discovery_batch_limit: I64 | None = None


class Automation(Section):
    """What happens without being asked."""

    execution: ExecutionAutomation | None = None
    discovery: DiscoveryAutomation | None = None


class Extension(Section):
    """A WebAssembly module, and where it is called."""

    wasm_sha256: str | None = None
    hooks: Many[Hook] = ()


class Transform(Section):
    """A named transform; which parameters count depends on its kind."""

    kind: TransformKind
    prefix: str | None = None
    suffix: str | None = None
    separators: Many[str] | None = None
    pattern: str | None = None
    group: U32 | None = None
    from_: str | None = Field(default=None, alias="from")
    to: str | None = None
    default: str | None = None
    steps: Many[str] | None = None


class Definitions(Section):
    """What other sections refer to by name."""

    omitted_when_empty = frozenset({"transforms"})

    transforms: dict[str, Transform] = {}


class TemplateVar(Section):
    """A variable of the query templates."""

    from_: str | None = Field(default=None, alias="from")
    transform: str | None = None


class SourceIdentity(Section):
    """How a source's identifier becomes template variables."""

    omitted_when_empty = frozenset({"template_vars"})

    canonical: str = "source_identifier"
    template_vars: dict[str, TemplateVar] = {}


class ProjectConfig(Section):
    """A survey: all that discovery, execution and automation need to know about it."""

    api_version: str = Field(alias="apiVersion")
    kind: str
    metadata: Metadata
    adapters: Adapters = Adapters()
    graph: GraphSource | None = None
    discovery: Discovery = Discovery()
    manifest: Manifest | None = None
    graph_patches: Many[GraphPatch] = ()
    output_verification: OutputVerification = OutputVerification()
    automation: Automation = Automation()
    extension: Extension | None = None
    definitions: Definitions | None = None
    source_identity: SourceIdentity | None = None

    def canonical_text(self) -> str:
        """The text under the digest: compact JSON of :meth:`as_json`, in its order."""
        return ordered_json(self.as_json())

    @property
    def spec_sha256(self) -> str:
        """SHA-256 of :meth:`canonical_text`, 64 lower-case hex digits."""
        return sha256_hex(self.canonical_text())

    @property
    def transforms(self) -> dict[str, Transform]:
        """The named transforms; empty without ``definitions``."""
        return self.definitions.transforms if self.definitions else {}

    @property
    def signature_options(self) -> SignatureOptions:
        """What the discovery signature covers; the defaults where the file says nothing."""
        prepare = self.discovery.prepare_metadata
        return (prepare.signature if prepare else None) or SignatureOptions()

    @classmethod
    def from_json(cls, value: JsonValue) -> ProjectConfig:
        """The project that :meth:`as_json` gave, or the value of a project file.

        Raises
        ------
        ConfigError
            ``invalid_config_structure``: names the first field that does not fit.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            problems = structure_problems(error, cls, value)
            first = problems[0]
            raise ConfigError(
                f"project: {dotted(first.path)}: {first.message}",
                code="invalid_config_structure",
                hint=first.hint,
                details={"paths": [dotted(problem.path) for problem in problems]},
            ) from None
