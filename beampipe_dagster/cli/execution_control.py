"""The operator's hand: ``beampipe execution cancel|retry|hold|release``, and holds of other things."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from beampipe_dagster.cli.core import Command, Context, pass_context
from beampipe_dagster.cli.render import cell, emit

if TYPE_CHECKING:
    from beampipe_dagster.ledger.holds import Scope

_REASON = click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept in the story.")
_YES = click.option("--yes", is_flag=True, help="Do not ask whether it is meant.")
_HOURS = click.option("--hours", type=float, metavar="N", help="How long; without it until it is released.")


def _identity(context: Context, prefix: str) -> str:
    from beampipe_dagster.cli.execution import resolve  # noqa: PLC0415  # it registers these commands itself

    with context.ledger.read() as conn:
        return resolve(conn, prefix).id


def _sure(context: Context, question: str, *, yes: bool) -> None:
    if not yes and not context.json:
        click.confirm(question, abort=True, err=True)


@click.command("cancel", cls=Command)
@click.argument("identifier", metavar="ID")
@_REASON
@_YES
@pass_context
def cancel(context: Context, identifier: str, reason: str, *, yes: bool) -> None:
    """Cancel an execution, and its session if it has one.

    It counts as cancelled when its manager has confirmed it; until then the poll goes on.
    """
    execution_id = _identity(context, identifier)
    _sure(context, f"Cancel execution {execution_id}?", yes=yes)
    done = context.platform.cancelling.cancel(execution_id, reason=reason, actor=context.actor)
    words = {
        "cancelling": "is told to stop, and nothing confirms it yet; the poll goes on",
        "waiting": "is cancelled as soon as it is known whether it has a session",
    }
    data = {
        "id": execution_id,
        "state": done.state,
        "status": done.execution.status,
        "asked_before": done.asked_before,
    }
    text = words.get(done.state, f"is {done.state}")
    emit(context, data, lambda out: out.print(cell(f"{execution_id} {text}.")))


@click.command("retry", cls=Command)
@click.argument("identifier", metavar="ID")
@_REASON
@pass_context
def retry(context: Context, identifier: str, reason: str) -> None:
    """Let a failed execution go on in place, at the step that failed.

    It keeps its documents and its revision of the survey. For a new execution instead, release its sources.
    """
    execution_id = _identity(context, identifier)
    done = context.platform.retry_in_place.retry(execution_id, reason=reason, actor=context.actor)
    data = {
        "id": done.id,
        "status": done.status,
        "retry_count": done.retry_count,
        "control_phase": done.control_phase,
    }
    emit(
        context,
        data,
        lambda out: out.print(cell(f"{done.id} is tried again (retry {done.retry_count}).")),
    )


def _hold(
    context: Context, scope: Scope, subject: str, *, reason: str, hours: float | None, project: str = ""
) -> None:
    held = context.platform.holds.hold(
        scope, subject, reason=reason, actor=context.actor, hours=hours, project_id=project
    )
    data: dict[str, Any] = {
        "scope": held.scope,
        "subject": subject,
        "reason": held.reason,
        "until": held.expires_at,
    }
    emit(context, data, lambda out: out.print(cell(f"The {held.scope} {subject} is held.")))


def _release(context: Context, scope: Scope, subject: str, *, reason: str, project: str = "") -> None:
    before = context.platform.holds.release(
        scope, subject, reason=reason, actor=context.actor, project_id=project
    )
    data = {"scope": before.scope, "subject": subject, "was": before.reason, "held_since": before.created_at}
    emit(context, data, lambda out: out.print(cell(f"The {before.scope} {subject} is released.")))


def _scope(word: str) -> Scope:
    from beampipe_dagster.ledger.holds import Scope  # noqa: PLC0415  # start-up time

    return Scope(word)


def _pair(word: str, names: tuple[str, str], what: str) -> tuple[click.Command, click.Command]:
    """The commands that hold and release one kind of thing."""

    def subject_of(context: Context, subject: str) -> str:
        return _identity(context, subject) if word == "execution" else subject

    project: Callable[..., Any] = (
        click.option("-p", "--project", "project_id", required=True, metavar="NAME", help="The survey.")
        if word == "source"
        else lambda function: function
    )

    @click.command(names[0], cls=Command, help=f"{what}, until it is released or its time is over.")
    @project
    @click.argument("subject", metavar="ID" if word == "execution" else "NAME")
    @_REASON
    @_HOURS
    @pass_context
    def hold(context: Context, subject: str, reason: str, hours: float | None, project_id: str = "") -> None:
        identity = subject_of(context, subject)
        _hold(context, _scope(word), identity, reason=reason, hours=hours, project=project_id)

    @click.command(names[1], cls=Command, help=f"Take such a hold of the {word} away.")
    @project
    @click.argument("subject", metavar="ID" if word == "execution" else "NAME")
    @_REASON
    @pass_context
    def release(context: Context, subject: str, reason: str, project_id: str = "") -> None:
        identity = subject_of(context, subject)
        _release(context, _scope(word), identity, reason=reason, project=project_id)

    return hold, release


EXECUTION_COMMANDS = (
    cancel,
    retry,
    *_pair("execution", ("hold", "release"), "Do not launch an execution that was not submitted"),
)


@click.command("release", cls=Command)
@click.option("-p", "--project", "project_id", required=True, metavar="NAME", help="The survey.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@pass_context
def release_source(context: Context, project_id: str, names: tuple[str, ...]) -> None:
    """Let sources run again whose execution failed or was cancelled.

    They have a new budget of retries, and those that wait for a retry do not wait any more. All names or none.
    """
    released = context.platform.admission.release(project_id, names, actor=context.actor)
    data = {"released": released, "left": [name for name in names if name not in released]}
    words = f"Released: {', '.join(released)}." if released else "Nothing had failed: nothing was changed."
    emit(context, data, lambda out: out.print(cell(words)))


SOURCE_COMMANDS = (
    release_source,
    *_pair("source", ("hold", "unhold"), "Admit no execution of a source"),
)
PROJECT_COMMANDS = _pair("project", ("hold", "release"), "Admit and launch nothing of a survey")
PROFILE_COMMANDS = _pair("profile", ("pause", "resume"), "Admit and launch nothing to a profile")
