"""Which failures are not tried again.

The known cases are texts. The product never reads an error's text: adapters give each failure a class where it
happens, and the class decides. So a text is first put into the class that an adapter would give it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from beampipe_dagster.execution.retry_policy import RetryPolicy
from beampipe_dagster.ledger.states import FailureClass
from beampipe_dagster_tests.golden.runner import Case, Deviation

if TYPE_CHECKING:
    from collections.abc import Callable

    from beampipe_dagster.config.canonical import JsonValue

_CLASSES: Final = (
    (FailureClass.AUTHENTICATION, ("authentication failed", "401", "credentials required")),
    (
        FailureClass.CONNECTIVITY,
        ("unreachable", "connection failed", "refused", "translation manager", "dim at", "preflight"),
    ),
    (FailureClass.TIMEOUT, ("timeout", "timed out")),
)


def never_again(value: JsonValue) -> JsonValue:
    """``{kind, error}`` -> whether it is not tried again."""
    return RetryPolicy().budget(_class_of(cast("dict[str, Any]", value)["error"]), None) == 0


def _class_of(text: str) -> FailureClass:
    lowered = text.lower()
    for kind, words in _CLASSES:
        if any(word in lowered for word in words):
            return kind
    return FailureClass.INTERNAL


def _class_is(kind: FailureClass) -> Callable[[Case], bool]:
    def applies(case: Case) -> bool:
        return _class_of(cast("dict[str, Any]", case.input)["error"]) is kind

    return applies


FUNCTIONS = {"job_error": never_again}
DEVIATIONS = [
    Deviation(
        name="a service that is away comes back",
        reason="an unreachable service is waited for, with growing delays; it is no reason to give up",
        applies=_class_is(FailureClass.CONNECTIVITY),
        agrees=lambda _, got: got is False,
    ),
    Deviation(
        name="wrong credentials stay wrong",
        reason="whoever asks with them, asking again only locks the account",
        applies=_class_is(FailureClass.AUTHENTICATION),
        agrees=lambda _, got: got is True,
    ),
]
