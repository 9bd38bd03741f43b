"""Write docs/states.md, the page about the states of an execution, from the code that has the law.

``write_state_docs.py [--check]``; with ``--check`` it writes nothing and exits with 1 when the page is stale.
"""  # noqa: INP001  # a script, not a package

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from beampipe_dagster.execution.reconcile import RULES, NextAction
from beampipe_dagster.ledger import fsm, states

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "states.md"
MADE = "<!-- Made by scripts/write_state_docs.py from the code; change the code, not this page. -->"
INTRODUCTION = """\
An execution has one **status**, which an operator sees, and several **axes**: what is known about each layer below
it. The status follows from the axes by one table. It moves only along the law of moves, which the database holds
too: an update that the law does not have is refused, whoever sends it.
"""
AXES: dict[str, type[StrEnum]] = {
    "`control_phase`: how far the control plane has come": states.ControlPhase,
    "`submission_state`: the one effect that costs an allocation": states.SubmissionState,
    "`scheduler_state`: the batch scheduler's job": states.SchedulerState,
    "`daliuge_state`: the DALiuGE session": states.DaliugeState,
    "`output_state`: the products": states.OutputState,
    "`terminal_outcome`: how it ended": states.TerminalOutcome,
    "What has to be done next": NextAction,
}


def page() -> str:
    """The text of the page."""
    lines = ["# States of an execution", "", MADE, "", INTRODUCTION]
    lines += ["## The law of moves", "", *moves()]
    lines += ["## From the axes to the status", "", *rules()]
    lines += ["## Words", ""]
    for title, words in AXES.items():
        lines += [f"- {title}: " + ", ".join(f"`{word.value}`" for word in words)]
    return "\n".join(lines).rstrip() + "\n"


def moves() -> Iterator[str]:
    """The table of moves."""
    yield "| from | to |"
    yield "|---|---|"
    for source in states.Status:
        targets = [f"`{target.value}`" for target in states.Status if fsm.allows(source, target)]
        ends = " (final)" if source in states.LOCKED else " (ended)" if source in states.TERMINAL else ""
        yield f"| `{source.value}`{ends} | {', '.join(targets) or 'nothing'} |"
    yield ""
    yield "Staying where it is is always allowed. Late evidence about a final execution is kept, and moves nothing."
    yield ""


def rules() -> Iterator[str]:
    """The table of reconciliation."""
    yield "The first line that holds counts."
    yield ""
    yield "| | when | status | outcome | next | contradiction |"
    yield "|---|---|---|---|---|---|"
    for number, rule in enumerate(RULES, start=1):
        then = rule.then
        outcome = f"`{then.outcome.value}`" if then.outcome else ""
        mismatch = f"`{then.mismatch}`" if then.mismatch else ""
        if then.requires_operator:
            mismatch += " (an operator decides)"
        cells = [str(number), rule.when, f"`{then.status.value}`", outcome, f"`{then.next_action.value}`"]
        yield f"| {' | '.join([*cells, mismatch])} |"
    yield ""
    yield inspect.cleandoc(
        """
        An execution that has ended is not moved by later observations; they are kept as evidence. `pending` never
        takes an execution back that had gone further.
        """
    ).replace("\n", " ")
    yield ""


def main() -> int:
    """Write the page, or check it."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        stale = not PAGE.exists() or PAGE.read_text() != wanted
        if stale:
            sys.stderr.write("docs/states.md is out of date: run scripts/write_state_docs.py\n")
        return int(stale)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
