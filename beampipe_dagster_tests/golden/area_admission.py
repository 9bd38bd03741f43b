"""Caps and budgets of admission."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from beampipe_dagster.execution import decisions

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def can_admit(value: JsonValue) -> JsonValue:
    """``{current, cap}`` -> whether one more fits."""
    case = cast("dict[str, Any]", value)
    return decisions.can_admit(case["current"], case["cap"])


def budget(value: JsonValue) -> JsonValue:
    """``{desired}`` -> how many are admitted."""
    return decisions.budget(cast("dict[str, Any]", value)["desired"])


FUNCTIONS = {"can_admit": can_admit, "budget": budget}
