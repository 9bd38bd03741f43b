"""``beampipe project prune``: keys of superseded signatures leave Dagster's partitions."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import click
from rich.console import Console

from beampipe_dagster.cli.core import Command, Context, pass_context
from beampipe_dagster.cli.render import cell, emit, number, table, when
from beampipe_dagster.discovery.retention import RetentionPlan

_SHOWN: Final = 20
_LONGEST_DAYS: Final = 3650


@click.command("prune", cls=Command)
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Say what would be retired, and change nothing.")
@click.option(
    "--days",
    type=click.IntRange(0, _LONGEST_DAYS),
    help="Keep superseded keys for so many days [default: BEAMPIPE_PARTITION_RETENTION_DAYS].",
)
@pass_context
def prune(context: Context, name: str, *, dry_run: bool, days: int | None) -> None:
    """Retire keys of superseded signatures, so that Dagster's partition pages stay quick.

    The ledger keeps the signatures, their metadata and their executions. Dagster's job prune_partitions, which
    runs once a day, takes the retired keys out of its partitions.
    """
    keep = None if days is None else timedelta(days=days)
    retention = context.platform.retention
    plan = retention.plan(name, keep=keep) if dry_run else retention.retire(name, keep=keep)
    emit(
        context,
        {**plan.as_dict(), "dry_run": dry_run},
        lambda out: _show(out, context, plan, dry_run=dry_run),
    )


def _show(out: Console, context: Context, plan: RetentionPlan, *, dry_run: bool) -> None:
    if plan.retire:
        rows = table("partition", "source", "why", "settled (UTC)")
        for key in plan.retire[:_SHOWN]:
            why = "superseded" if key.superseded else "completed"
            if key in plan.over:
                why += ", before its time"
            rows.add_row(
                cell(key.partition_key),
                cell(key.source_identifier),
                why,
                when(key.settled_at, now=context.clock.now()),
            )
        out.print(rows)
        if len(plan.retire) > _SHOWN:
            out.print(f"and {len(plan.retire) - _SHOWN:,} more")
    verb = "would be" if dry_run else "was" if len(plan.retire) <= 1 else "were"
    counted = number(len(plan.retire), "key") if plan.retire else "No key"
    out.print(f"{counted} {verb} retired; {plan.left:,} of {plan.live:,} stay.", soft_wrap=True)
    if plan.left > plan.limit:
        out.print(
            f"That is more than {plan.limit:,} (BEAMPIPE_PARTITION_LIVE_KEYS): the others are needed, or wait for"
            " their next turn.",
            soft_wrap=True,
        )
