"""How what is wrong with a file is shown: where, the line itself with a mark, what, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from beampipe_dagster.cli.render import number
from beampipe_dagster.config.diagnostics import Diagnostic, Severity, ValidationReport
from beampipe_dagster.sandbox.terminal import clean

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow"}
_MARGIN = 30
"""Characters of a long line that are shown before its mark."""


def show_report(out: Console, report: ValidationReport, *, name: str, text: str) -> None:
    """Everything that was found, then whether the file can be used.

    Parameters
    ----------
    report
        What was found.
    name
        The file's name.
    text
        Its content, for the lines.
    """
    lines = text.splitlines()
    for diagnostic in (*report.errors, *report.warnings):
        _show(out, diagnostic, name=name, lines=lines)
    warned = f", {number(len(report.warnings), 'warning')}" if report.warnings else ""
    if report.valid:
        out.print(Text.assemble((f"{clean(report.project_id)} is valid", "green"), warned), soft_wrap=True)
        return
    found = f"{number(len(report.errors), 'error')}{warned}: {clean(name)} cannot be used"
    out.print(Text(found, style="bold red"), soft_wrap=True)


def _show(out: Console, diagnostic: Diagnostic, *, name: str, lines: Sequence[str]) -> None:
    where = f"{name}:{diagnostic.line}:{diagnostic.column}" if diagnostic.line else name
    style = _STYLES[diagnostic.severity]
    head = Text.assemble((clean(where), "bold"), "  ", (f"{diagnostic.severity}[{diagnostic.code}]", style))
    if not diagnostic.path.startswith("line "):
        head.append(f"  {clean(diagnostic.path)}", style="cyan")
    out.print(head, soft_wrap=True)
    if diagnostic.line is not None and diagnostic.line <= len(lines):
        room = max(20, out.width - 12)
        excerpt, mark = _excerpt(lines[diagnostic.line - 1], (diagnostic.column or 1) - 1, room)
        gutter = f"{diagnostic.line:>5} │ "
        out.print(Text.assemble((gutter, "dim"), excerpt), soft_wrap=True)
        out.print(Text.assemble((" " * (len(gutter) - 2) + "│ ", "dim"), (" " * mark + "^", style)))
    out.print(Padding(Text(clean(diagnostic.message)), (0, 0, 0, 2)))
    if diagnostic.hint:
        out.print(Padding(Text.assemble(("hint: ", "cyan"), clean(diagnostic.hint)), (0, 0, 0, 2)))
    out.print()


def _excerpt(line: str, column: int, room: int) -> tuple[str, int]:
    """The part of a line around a column that fits, and where the column is in it."""
    line = clean(line).replace("\t", " ")  # a tab is one column of the file
    start = max(0, column - _MARGIN) if len(line) > room and column > _MARGIN else 0
    shown = line[start : start + room]
    head, tail = ("…" if start else ""), ("…" if start + room < len(line) else "")
    return head + shown + tail, column - start + len(head)
