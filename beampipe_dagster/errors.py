"""The one error tree of the project.

Every error that leaves a module is a :class:`BeampipeError`: it has a stable *code* to search for, a *hint*
that says what to do, and a *retry class* that services act on. Adapters translate what the network, a parser
or a database raised into this tree at their edge; nobody above them looks at an exception's text.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class Retry(StrEnum):
    """Whether doing the same thing again can help."""

    NEVER = "never"
    """The input or the configuration must change first."""

    LATER = "later"
    """A dependency is away or busy and nothing happened: wait, then do it again."""

    AFTER_RECONCILE = "after_reconcile"
    """It may have happened: look before doing anything again."""


class BeampipeError(Exception):
    """Root of all errors of the project.

    Parameters
    ----------
    message
        What is wrong, with the place (a path, a URL, an identifier) in it. One sentence.
    code
        Stable, dotted or snake-case identifier; defaults to the class's own.
    hint
        What the reader can do about it.
    retry
        Whether doing it again can help; defaults to the class's own.
    details
        JSON-able facts for the ledger and for ``--json`` output. Never a secret.
    """

    default_code: ClassVar[str] = "internal"
    default_retry: ClassVar[Retry] = Retry.NEVER
    default_hint: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        retry: Retry | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = self.default_hint if hint is None else hint
        self.retry = retry or self.default_retry
        self.details = details or {}

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON: ``code, message, hint, retry`` and ``details`` when there are any."""
        out: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retry": self.retry.value,
        }
        if self.details:
            out["details"] = self.details
        return out

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(BeampipeError):
    """A project file, a profile or a setting that cannot be used."""

    default_code = "invalid_config"


class InputError(BeampipeError):
    """What an operator gave (an identifier, a count, a file) cannot be used."""

    default_code = "invalid_input"


class NotFoundError(BeampipeError):
    """The named thing is not in the ledger."""

    default_code = "not_found"


class ConflictError(BeampipeError):
    """The ledger's state does not allow it, or somebody else holds it."""

    default_code = "conflict"


class LedgerError(BeampipeError):
    """The ledger cannot be read or written."""

    default_code = "ledger_unavailable"
    default_retry = Retry.LATER


class ArchiveError(BeampipeError):
    """An archive's answer is not a complete one (error, overflow, malformed, timeout, refused)."""

    default_code = "archive_error"
    default_retry = Retry.LATER


class DataError(BeampipeError):
    """An archive answered completely, but its rows cannot be made into metadata."""

    default_code = "invalid_metadata"


class GraphError(BeampipeError):
    """A graph cannot be read, patched or translated."""

    default_code = "invalid_graph"


class BackendError(BeampipeError):
    """A DALiuGE or Slurm service refused or failed a call; nothing was started."""

    default_code = "backend_error"


class BackendUnavailableError(BackendError):
    """The service is away, too slow or answers nonsense, and nothing was started."""

    default_code = "backend_unavailable"
    default_retry = Retry.LATER


class SubmissionUncertainError(BackendError):
    """The submission may have happened. Look for its session or token; never submit again blindly."""

    default_code = "submission_uncertain"
    default_retry = Retry.AFTER_RECONCILE
