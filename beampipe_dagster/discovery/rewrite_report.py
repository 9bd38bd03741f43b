"""How each query of a survey is asked for many sources, why not, and what about it may surprise.

Nobody is asked for this: what the archives can do is given, what requests cost is read from the evidence of looks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlglot import exp
from sqlglot.errors import SqlglotError

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig, Query
from beampipe_dagster.discovery.adql_reading import Adql
from beampipe_dagster.discovery.archive import TapCapabilities
from beampipe_dagster.discovery.batch_query import CHUNK, MAX_CHARACTERS
from beampipe_dagster.discovery.rewrite import BatchPlan, NotBatchable, plan_batch
from beampipe_dagster.discovery.templates import render, template_context
from beampipe_dagster.discovery.upload_join import TRAPS, UPLOAD_CHUNK, Form, upload_trap
from beampipe_dagster.errors import BeampipeError, InputError
from beampipe_dagster.ledger.tables import discovery_signatures

EXAMPLE_SOURCE: Final = "HIPASSJ1318-21"
"""A name of the usual length."""
LOOKED_THROUGH: Final = 200
"""Changes of signatures whose evidence is looked through for costs."""
_EXAMPLE_SBID: Final = "72962"
_PREFIX: Final = re.compile(r"\}%'$")
_BEYOND_ADQL_2: Final[tuple[tuple[type[exp.Expr], str], ...]] = (
    (exp.Escape, "LIKE ... ESCAPE"),
    (exp.SetOperation, "UNION, INTERSECT or EXCEPT"),
    (exp.CTE, "WITH"),
    (exp.Case, "CASE"),
    (exp.ILike, "ILIKE"),
    (exp.Offset, "OFFSET"),
)


@dataclass(frozen=True, slots=True)
class Surprise:
    """Something about a query that deserves a second look.

    Parameters
    ----------
    code
        ``like_on_upload``, ``function_on_column``, ``prefix_crosses``, ``not_adql_2``, ``order_open``,
        ``watermark_not_possible``.
    message
        A sentence.
    """

    code: str
    message: str

    def as_dict(self) -> dict[str, JsonValue]:
        """Code and message."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True)
class MeasuredCost:
    """What the newest request of a query took, for a source."""

    form: str
    seconds_per_source: float
    sources: int
    at: datetime


@dataclass(frozen=True, slots=True)
class QueryReport:
    """How one query is asked.

    Parameters
    ----------
    name, adapter
        The query's, and its archive's.
    role
        ``primary``, ``further`` or ``enrichment``.
    form
        ``in`` (a list of values), ``or`` (alternatives), ``latest`` (alternatives, the latest picked afterwards),
        ``upload`` (always with a table), or ``per_source``.
    exact
        Whether each source gets from a request for many what it gets alone.
    reason, why
        Why it is asked source by source: a word, and a sentence; ``None`` when it is not.
    upload
        Whether a table goes with the query when one request cannot name all sources.
    surprises
        What deserves a second look.
    characters
        Of the query for one source.
    batch_size, batch_characters
        Sources that one request names, and its length.
    watermark
        The column by which new rows are found for all sources at once, where there is one.
    cost
        What the newest request took; ``None`` where nothing is known.
    """

    name: str
    adapter: str
    role: str
    form: str
    exact: bool
    reason: str | None
    why: str | None
    upload: bool
    surprises: tuple[Surprise, ...]
    characters: int
    batch_size: int
    batch_characters: int
    watermark: str | None = None
    cost: MeasuredCost | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        cost = self.cost
        return {
            "name": self.name,
            "adapter": self.adapter,
            "role": self.role,
            "form": self.form,
            "exact": self.exact,
            "reason": self.reason,
            "why": self.why,
            "upload": self.upload,
            "surprises": [one.as_dict() for one in self.surprises],
            "characters": self.characters,
            "batch_size": self.batch_size,
            "batch_characters": self.batch_characters,
            "watermark": self.watermark,
            "cost": None
            if cost is None
            else {
                "form": cost.form,
                "seconds_per_source": round(cost.seconds_per_source, 6),
                "sources": cost.sources,
                "at": cost.at,
            },
        }

    @property
    def sentence(self) -> str:
        """How it is asked for many, in words."""
        if self.form == "per_source":
            return f"Many sources are asked about one by one: {self.why}."
        how = {
            "in": "as a list of values",
            "or": "as alternatives",
            "latest": "as alternatives, of which each source keeps its latest",
            "upload": "with a table of them",
        }[self.form]
        more = ", and a table goes with the query when there are more" if self.upload else ""
        return f"Up to {self.batch_size} sources share a request, {how}{more}; each gets what it would get alone."


def report(
    config: ProjectConfig,
    *,
    capabilities: Mapping[str, TapCapabilities] | None = None,
    costs: Mapping[str, MeasuredCost] | None = None,
    source_identifier: str = EXAMPLE_SOURCE,
) -> tuple[QueryReport, ...]:
    """How the queries of a survey are asked.

    Parameters
    ----------
    config
        The survey.
    capabilities
        What the archives can do, by adapter; no uploads where it is not given.
    costs
        What :func:`last_costs` found.
    source_identifier
        The source that lengths are computed with.
    """
    discovery = config.discovery
    parts = [("primary" if index == 0 else "further", one) for index, one in enumerate(discovery.queries)]
    parts += [("enrichment", one) for one in discovery.enrichments]
    able, known = capabilities or {}, costs or {}
    return tuple(
        _of(config, query, role, index, source_identifier, able.get(query.adapter), known.get(query.name))
        for index, (role, query) in enumerate(parts)
    )


def last_costs(conn: Connection, project_id: str) -> dict[str, MeasuredCost]:
    """What the newest requests of each query took, from the evidence of the newest changes."""
    columns = discovery_signatures.c
    rows = conn.execute(
        sa.select(columns.evidence, columns.discovered_at)
        .where(columns.project_module == project_id)
        .order_by(columns.id.desc())
        .limit(LOOKED_THROUGH)
    )
    found: dict[str, MeasuredCost] = {}
    for evidence, moment in rows:
        for item in evidence if isinstance(evidence, list) else []:
            query, seconds = item.get("query"), item.get("seconds")
            if not isinstance(query, str) or query in found or not isinstance(seconds, int | float):
                continue
            sources = item.get("sources") if "form" in item else 1
            sources = sources if isinstance(sources, int) and sources > 0 else 1
            form = str(item.get("form") or "per_source")
            found[query] = MeasuredCost(form, float(seconds) / sources, sources, moment)
    return found


def _of(
    config: ProjectConfig,
    query: Query,
    role: str,
    index: int,
    source: str,
    able: TapCapabilities | None,
    cost: MeasuredCost | None,
) -> QueryReport:
    context = _context(config, source, index, role)
    template = query.adql_template
    plan = plan_batch(template, frozenset(context))
    form, reason, why = _form(query, plan)
    batched = isinstance(plan, BatchPlan) and reason is None
    wanted = query.batch.form if query.batch else "auto"
    uploads = bool(
        batched
        and isinstance(plan, BatchPlan)
        and upload_trap(plan) is None
        and able is not None
        and able.upload
    ) and wanted in {"auto", "upload"}
    size, length = (1, len(_rendered(template, context)))
    if batched and isinstance(plan, BatchPlan):
        size, length = _batch(query, plan, context, upload=form == "upload")
    return QueryReport(
        name=query.name,
        adapter=query.adapter,
        role=role,
        form=form,
        exact=batched,
        reason=reason,
        why=why,
        upload=uploads,
        surprises=tuple(_surprises(query, plan, role)),
        characters=len(_rendered(template, context)),
        batch_size=size,
        batch_characters=length,
        watermark=query.watermark.column if query.watermark else None,
        cost=cost,
    )


def _context(config: ProjectConfig, source: str, index: int, role: str) -> dict[str, JsonValue]:
    try:
        context = template_context(config, source, index)
    except InputError:  # lengths with another name are as good
        context = template_context(config, EXAMPLE_SOURCE, index)
    return {**context, "sbid": _EXAMPLE_SBID} if role == "enrichment" else context


def _form(query: Query, plan: BatchPlan | NotBatchable) -> tuple[str, str | None, str | None]:
    wanted = query.batch.form if query.batch else "auto"
    if wanted == "none":
        return "per_source", "batch_none", "the survey says so (batch: none)"
    if isinstance(plan, NotBatchable):
        return "per_source", plan.reason.value, str(plan)
    if wanted == "in" and not plan.as_list:
        return "per_source", "form_not_possible", "a list of values is for one column that is compared by `=`"
    if wanted == "upload" and upload_trap(plan) is None:
        return Form.UPLOAD.value, None, None
    if plan.keep_max is not None:
        return "latest", None, None
    return (Form.IN if plan.as_list and wanted != "or" else Form.OR).value, None, None


def _batch(
    query: Query, plan: BatchPlan, context: Mapping[str, JsonValue], *, upload: bool
) -> tuple[int, int]:
    """Sources that one request names, and its length in characters."""
    asked = query.batch.size if query.batch and query.batch.size else None
    one = sum(len(comparison.text(context)) + len(" AND ") for comparison in plan.comparisons) + len(" OR ()")
    if upload:
        return asked or UPLOAD_CHUNK, len(plan.template) + one
    room = max(1, (MAX_CHARACTERS - len(plan.template)) // one)
    size = min(asked or CHUNK, room)
    return size, len(plan.template) + size * one


def _surprises(query: Query, plan: BatchPlan | NotBatchable, role: str) -> Iterator[Surprise]:
    tree = _parsed(query.adql_template)
    if isinstance(plan, BatchPlan):
        trap = upload_trap(plan)
        if trap is not None:
            yield Surprise("like_on_upload", f"It is never asked with an uploaded table: {TRAPS[trap]}.")
        declared = {match.how for match in query.match}
        crossing = [one for one in plan.comparisons if one.like and _PREFIX.search(one.literal)]
        if crossing and "prefix" not in declared:
            yield Surprise(
                "prefix_crosses",
                f"{crossing[0].written} LIKE {crossing[0].literal} also finds the rows of sources whose names begin "
                "with this one's; if that is not meant, let the pattern go on with what follows a name, such as _SB.",
            )
    elif tree is not None and _function_compared(tree):
        yield Surprise(
            "function_on_column",
            "A function of the column is compared: no index helps, and rows of many sources cannot be told apart.",
        )
    if query.watermark is not None and isinstance(plan, NotBatchable):
        yield Surprise("watermark_not_possible", f"New rows cannot be found for all sources at once: {plan}.")
    if tree is not None:
        for kind, words in _BEYOND_ADQL_2:
            if tree.find(kind) is not None:
                yield Surprise(
                    "not_adql_2", f"{words} is not in ADQL 2.0; archives that speak only that refuse it."
                )
        if role != "primary" and tree.args.get("order") is None and query.keep is None:
            yield Surprise(
                "order_open",
                "The first of several rows counts, and without ORDER BY an archive may give them in any order.",
            )


def _function_compared(tree: exp.Expr) -> bool:
    """Whether a text with a placeholder is compared with a function of a column."""
    for node in tree.find_all(exp.EQ, exp.Like, exp.ILike):
        sides = [node.this, node.expression]
        has_text = any(isinstance(side, exp.Literal) and "{" in str(side.this) for side in sides)
        if has_text and any(isinstance(side, exp.Func) and side.find(exp.Column) for side in sides):
            return True
    return False


def _parsed(template: str) -> exp.Expr | None:
    try:
        (tree,) = Adql().parse(template)
    except (SqlglotError, RecursionError, ValueError):
        return None
    return tree


def _rendered(template: str, context: Mapping[str, JsonValue]) -> str:
    try:
        return render(template, context)
    except BeampipeError:
        return template
