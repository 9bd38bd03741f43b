"""Whether the deployment profile that a survey names is there, and whether the survey may use it.

A name that is nobody's profile would only be noticed when the first source is ready to run, which may be
weeks after the survey was added.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import Connection

from beampipe_dagster.config.diagnostics import Diagnostic, Severity, dotted, located
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.yaml_loader import Path, YamlDocument
from beampipe_dagster.errors import ConfigError, ConflictError, NotFoundError
from beampipe_dagster.ledger import profiles

PLACE: Final[Path] = ("automation", "execution", "deployment_profile_name")
"""Where a project file names its profile."""


def named_profile(config: ProjectConfig) -> str | None:
    """The name of the profile that a survey runs with; ``None`` where the default one is meant."""
    execution = config.automation.execution
    return execution.deployment_profile_name if execution is not None else None


def check_profile(
    conn: Connection, config: ProjectConfig, document: YamlDocument | None = None
) -> tuple[Diagnostic, ...]:
    """Look for the profile that a survey names.

    Parameters
    ----------
    conn
        The ledger.
    config
        The survey. Where it names no profile there is nothing to look for: a default one may be added later.
    document
        The file that it was read from, for line and column.

    Returns
    -------
    tuple of Diagnostic
        ``profile_not_found`` or ``profile_of_another_project``; an error when executions begin by themselves,
        else a warning.
    """
    execution = config.automation.execution
    name = named_profile(config)
    if execution is None or name is None:
        return ()
    try:
        profiles.resolve(conn, name=name, project_module=config.metadata.id)
    except (NotFoundError, ConflictError) as error:
        severity = Severity.ERROR if execution.enabled else Severity.WARNING
        hint = error.hint
        if error.code == "profile_not_found":
            known = ", ".join(item.name for item in profiles.everything(conn)) or "none"
            hint = f"Add the profile first: beampipe profile add FILE. Known profiles: {known}."
        if document is None:
            found = Diagnostic(dotted(PLACE), severity, error.code, error.message, hint)
        else:
            found = located(document, PLACE, error.code, error.message, hint=hint, severity=severity)
        return (found,)
    return ()


def refuse_unknown(found: tuple[Diagnostic, ...], *, name: str) -> None:
    """Stop at the first error of :func:`check_profile`.

    Raises
    ------
    ConfigError
        ``profile_not_found`` or ``profile_of_another_project``, with the place in the file.
    """
    for item in found:
        if item.severity is Severity.ERROR:
            where = name if item.line is None else f"{name}:{item.line}:{item.column}"
            raise ConfigError(
                f"{where}: {item.path}: {item.message}",
                code=item.code,
                hint=item.hint,
                details={"diagnostics": [item.as_dict()]},
            )
