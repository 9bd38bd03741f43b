"""A deployment profile's text judged as a whole: every error and every warning, with its place."""

from __future__ import annotations

from beampipe_dagster.config.canonical import parse_json, sha256_hex
from beampipe_dagster.config.diagnostics import Diagnostic, Severity, ValidationReport
from beampipe_dagster.config.profile import load_profile, profile_warnings
from beampipe_dagster.errors import ConfigError


def validate_profile(text: str | bytes, *, name: str = "<profile>") -> ValidationReport:
    """Check a deployment profile.

    Parameters
    ----------
    text
        The JSON document.
    name
        What messages call it.

    Returns
    -------
    ValidationReport
        Never raises for what is in the file. Its ``project_id`` is the profile's name, or ``""`` when that
        cannot be read; its digest is that of the profile, or of the bytes of what is none.
    """
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        value = parse_json(text, name=name)
    except ConfigError as error:
        return ValidationReport("", (_unreadable(error, name),), (), sha256_hex(raw))
    warnings = profile_warnings(value, text=text)
    try:
        profile = load_profile(text, name=name)
    except ConfigError as error:
        found = error.details.get("diagnostics", [])
        errors = tuple(Diagnostic(**{**item, "severity": Severity(item["severity"])}) for item in found)
        given = value.get("name") if isinstance(value, dict) else None
        named = given if isinstance(given, str) else ""
        return ValidationReport(named, errors, warnings, sha256_hex(raw))
    return ValidationReport(profile.name, (), warnings, profile.spec_sha256)


def _unreadable(error: ConfigError, name: str) -> Diagnostic:
    line, column = error.details.get("line"), error.details.get("column")
    placed = isinstance(line, int) and isinstance(column, int)
    where = f"{name}:{line}:{column}: " if placed else f"{name}: "
    return Diagnostic(
        path=f"line {line}, column {column}" if placed else "$",
        severity=Severity.ERROR,
        code=error.code,
        message=error.message.removeprefix(where),
        hint=error.hint,
        line=line if placed else None,
        column=column if placed else None,
    )
