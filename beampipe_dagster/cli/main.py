"""The entry point: ``beampipe``."""

from __future__ import annotations

import io
import sys

import click

from beampipe_dagster.cli.core import Root

_CLI = "beampipe_dagster.cli"

root = Root(
    name="beampipe",
    help="The control plane of radio-astronomy surveys: discovery, executions, and the ledger behind them.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    lazy={
        "up": (f"{_CLI}.up:up", "Start everything on this machine; Ctrl-C stops it."),
        "demo": (f"{_CLI}.up:demo", "Run the demo survey to its expected results, with a report."),
        "project": (f"{_CLI}.project:project", "Surveys: validate, add, list, show, diff."),
        "profile": (f"{_CLI}.profile:profile", "Deployment profiles: validate, add, list, render."),
        "source": (f"{_CLI}.source:source", "Sources: register, list, show, discover."),
        "execution": (f"{_CLI}.execution:execution", "Executions: list, show."),
        "archive": (f"{_CLI}.archive:archive", "Archives: list, show, open, close, probe."),
        "slurm": (f"{_CLI}.slurm_credentials:slurm", "Clusters: credentials of login nodes, ping."),
        "timeline": (f"{_CLI}.timeline:timeline", "What happened to a source, an execution, a survey."),
        "sandbox": (f"{_CLI}.sandbox:sandbox", "The sandbox archive: deposits, faults, query log."),
        "ledger": (f"{_CLI}.ledger:ledger", "The ledger's database: migrate, status, verify."),
    },
)
"""The root group."""

click.version_option(package_name="beampipe-dagster", prog_name="beampipe")(root)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets a question mark, not an error.
            stream.reconfigure(errors="replace")
    root.main(prog_name="beampipe")
