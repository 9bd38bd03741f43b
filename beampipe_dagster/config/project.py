"""A survey's project file as frozen models, its canonical form and its digest.

The models are the structure only: they refuse unknown fields and wrong types, and fill defaults in.
Whether the values make sense together is for :mod:`beampipe_dagster.config.validation`.

The digest is over the *typed* project, so that comments, key order and defaults that are spelled
out do not change it: fields in the order in which they are declared here, maps by sorted key,
optional fields that are not set left out. The order of the fields below is therefore part of the
format.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, ValidationError, model_validator

from beampipe_dagster.config.canonical import JsonValue, ordered_json, sha256_hex
from beampipe_dagster.config.diagnostics import dotted, structure_problems
from beampipe_dagster.config.queries import Discovery as Discovery  # noqa: PLC0414  # a part of this format
from beampipe_dagster.config.queries import FieldMapping as FieldMapping  # noqa: PLC0414  # a part of this format
from beampipe_dagster.config.queries import PrepareMetadata as PrepareMetadata  # noqa: PLC0414  # a part of this format
from beampipe_dagster.config.queries import Query as Query  # noqa: PLC0414  # a part of this format
from beampipe_dagster.config.queries import SignatureOptions as SignatureOptions  # noqa: PLC0414  # a part of this format
from beampipe_dagster.config.section import U32, U64, Limit, Many, OneOf, Section
from beampipe_dagster.config.section import UNKNOWN as UNKNOWN  # noqa: PLC0414  # a word of this format too
from beampipe_dagster.errors import ConfigError

API_VERSION: Final = "beampipe.dev/v2"
"""The one version whose files are valid."""
KIND: Final = "ProjectConfig"
"""The one kind of file."""
INVENTORY_SCHEMA: Final = "wallaby-hires-output-inventory/v1"
"""The one schema of output inventories that is known."""
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


TransformKind = Annotated[str, OneOf(TRANSFORM_KINDS)]
MatchKind = Annotated[str, OneOf(MATCH_KINDS)]
MatchCount = Annotated[str, OneOf(MATCH_COUNTS)]
Hook = Annotated[str, OneOf(HOOKS)]


class Metadata(Section):
    """Who the survey is."""

    id: str = Field(description="The survey's name: in the ledger, in asset keys, in metrics")
    description: str | None = Field(None, description="A sentence for people")


class TapLimits(Section):
    """How the archives' TAP services are asked."""

    timeout_seconds: U64 = Field(30, description="Longest wait for one answer of an archive, in seconds")
    retries: U32 = Field(1, description="How often a query is repeated after a passing failure")
    fail_open: bool = Field(False, description="Has no effect: an archive that is away is never an empty one")


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
    definitions: dict[str, AdapterDefinition] = Field({})


class GraphSource(Section):
    """The logical graph: a file or a URL, and the digest that its bytes must have."""

    url: str | None = None
    path: str | None = None
    sha256: str | None = None


class Manifest(Section):
    """The shape of the workflow manifest."""

    group_by: Many[str] = Field(
        (), description="Fields of the records; each combination of values gets an entry"
    )
    source_template: dict[str, Any] = Field(
        {}, description='Fields of an entry; "{x}" is field x of its first record'
    )
    dataset_template: dict[str, Any] | None = Field(
        None, description="Fields of a dataset, when expand_from is metadata"
    )
    expand_from: str | None = Field(
        None, description="metadata: datasets are made by dataset_template; else records as they are"
    )
    path: str = Field(
        "manifest.json", description="Kept with the survey; the graph is given the manifest itself"
    )


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

    required: bool = Field(
        False, description="Whether an execution is done only when its products are proven"
    )
    inventory_schema: str = Field(INVENTORY_SCHEMA, description="Schema of the inventory of products")


class RetryRules(Section):
    """How often a failed execution is tried again without being asked; what is absent is as the platform has it."""

    max_attempts: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Retries of one signature at most; 0 tries nothing again"
    )
    first_delay_minutes: Annotated[float, Field(ge=0, le=10_080)] | None = Field(
        None, description="Time before the first retry"
    )
    factor: Annotated[float, Field(ge=1, le=100)] | None = Field(
        None, description="How much longer each following retry waits"
    )


class Staging(Section):
    """Whether an archive brings the datasets of an execution online before it runs."""

    enabled: bool = Field(description="Whether data are staged; without the section as the manifest needs it")


class ExecutionAutomation(Section):
    """When and how much is executed without being asked."""

    enabled: bool = Field(False, description="Whether changed sources are executed without being asked")
    archive_name: str = Field("casda", description="The archive that the datasets are taken from")
    max_sources_per_execution: Limit = Field(20, description="Sources in one execution")
    tick_execution_source_limit: Limit = Field(500, description="Sources that one tick may take")
    tick_execution_run_limit: Limit = Field(20, description="Executions that one tick may start")
    min_sources_to_trigger: Limit = Field(
        1, description="Changed sources that must be waiting before any is executed"
    )
    max_wait_minutes: Limit = Field(
        1440, description="After so long a source is executed, however few are waiting"
    )
    claim_ttl_minutes: Limit = Field(180, description="How long a tick's claim on sources holds")
    concurrent_execution_run_limit: Limit | None = Field(
        None, description="Executions of this survey at a time"
    )
    deployment_profile_name: str | None = Field(
        None, description="Where it runs; by default the default profile"
    )
    execution_slurm_remote_poll_max_rounds: Limit | None = Field(
        None, description="Looks at a Slurm job before giving up on it"
    )
    execution_rest_remote_poll_max_rounds: Limit | None = Field(
        None,
        description="Looks at a running session after which an operator is told; nothing is failed for it",
    )
    execution_rest_remote_poll_interval_seconds: float | None = Field(
        None, description="Shortest time between two looks at a session, in seconds"
    )
    execution_slurm_remote_poll_interval_seconds: float | None = Field(
        None, description="Time between looks at a Slurm job"
    )
    retry: RetryRules | None = Field(
        None, description="How often what failed for a passing reason is tried again"
    )
    weight: Limit | None = Field(
        None, description="Share of a room that several surveys want, beside theirs; 1 unless given"
    )


class DiscoveryAutomation(Section):
    """When and how much is discovered without being asked."""

    enabled: bool = Field(False, description="Whether sources are looked for without being asked")
    tick_discovery_source_limit: Limit = Field(200, description="Sources that one tick may claim")
    batch_size: Limit = Field(5, description="Sources in one discovery run")
    stale_after_hours: Limit = Field(
        24, description="Age of the last look after which a source is looked for again"
    )
    claim_ttl_minutes: Limit = Field(180, description="How long a run's claim on sources holds")
    queue_max_depth: Limit | None = Field(None, description="Waiting runs above which a tick asks for none")
    tick_discovery_batch_limit: Limit | None = Field(None, description="Runs that one tick may ask for")
    concurrent_discovery_batch_limit: Limit | None = Field(
        None, description="Discovery runs of this survey at a time"
    )


class Automation(Section):
    """What happens without being asked."""

    execution: ExecutionAutomation | None = Field(
        None, description="When and how much is executed; absent means not at all"
    )
    discovery: DiscoveryAutomation | None = Field(
        None, description="When and how much is discovered; absent means not at all"
    )


class Extension(Section):
    """A WebAssembly module, and where it is called."""

    wasm_sha256: str | None = Field(None, description="Refused: plug-ins are Python entry points here")
    hooks: Many[Hook] = Field((), description="Where the module would be called")


class Transform(Section):
    """A named transform; which parameters count depends on its kind."""

    kind: TransformKind = Field(description="What it does")
    prefix: str | None = Field(None, description="add_prefix, strip_prefix: the text")
    suffix: str | None = Field(None, description="add_suffix: the text")
    separators: Many[str] | None = Field(
        None, description="split_last: each character of each text separates"
    )
    pattern: str | None = Field(None, description="regex_extract: in the syntax of Rust's regex crate")
    group: U32 | None = Field(
        None, description="regex_extract: the group to take; 1 unless given, 0 is the whole match"
    )
    from_: str | None = Field(default=None, alias="from", description="replace: what is looked for")
    to: str | None = Field(None, description="replace: what comes instead; nothing unless given")
    default: str | None = Field(None, description="default_if_empty: what an empty value becomes")
    steps: Many[str] | None = Field(None, description="chain: names of transforms, applied in order")


class Definitions(Section):
    """What other sections refer to by name."""

    omitted_when_empty = frozenset({"transforms"})

    transforms: dict[str, Transform] = Field(
        {}, description="By name: the transforms that this file refers to"
    )


class TemplateVar(Section):
    """A variable of the query templates."""

    from_: str | None = Field(
        default=None,
        alias="from",
        description="canonical (the source identifier, also when absent), or a literal text",
    )
    transform: str | None = Field(None, description="Name of the transform that makes the value of it")


class SourceIdentity(Section):
    """How a source's identifier becomes template variables."""

    omitted_when_empty = frozenset({"template_vars"})

    canonical: str = Field("source_identifier", description="What the identifier is called; for people")
    template_vars: dict[str, TemplateVar] = Field(
        {}, description="By name: the variables that query templates may use"
    )


class PluginRef(Section):
    """Code of the survey's own, installed as a Python package, and the version that was meant."""

    name: str = Field(description="Name of its entry point in the group beampipe_dagster.plugins")
    version: str = Field(description="Version of the package that brings it, exactly")


class ProjectConfig(Section):
    """A survey: all that discovery, execution and automation need to know about it."""

    omitted_when_empty = frozenset({"plugins"})

    api_version: str = Field(
        alias="apiVersion", description="Version of this format", json_schema_extra={"const": API_VERSION}
    )
    kind: str = Field(description="Kind of this document", json_schema_extra={"const": KIND})
    metadata: Metadata = Field(description="Who the survey is")
    adapters: Adapters = Field(Adapters(), description="The archives that it needs")
    graph: GraphSource | None = Field(None, description="The logical graph that processes its sources")
    discovery: Discovery = Field(Discovery(), description="What is asked, and what is made of the answers")
    manifest: Manifest | None = Field(None, description="What an execution is told to process")
    graph_patches: Many[GraphPatch] = Field(
        (), description="Values set on nodes of the graph, later ones after earlier ones"
    )
    output_verification: OutputVerification = Field(
        OutputVerification(), description="Whether products must be proven"
    )
    automation: Automation = Field(Automation(), description="What happens without being asked")
    extension: Extension | None = Field(None, description="Not supported")
    definitions: Definitions | None = Field(None, description="Named transforms")
    source_identity: SourceIdentity | None = Field(
        None, description="How an identifier becomes template variables"
    )
    plugins: Many[PluginRef] = Field((), description="Code of the survey's own, in the order of use")
    staging: Staging | None = Field(None, description="Whether data are staged before they are processed")

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
