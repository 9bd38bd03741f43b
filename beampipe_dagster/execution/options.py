"""What the one who launches an execution may ask for; kept with the execution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from beampipe_dagster.config.canonical import JsonValue


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What an execution does besides the obvious.

    Attributes
    ----------
    do_stage
        Whether its data are staged; ``None`` leaves it to the survey.
    do_submit
        Whether its physical graph is submitted. Otherwise it ends with that graph, as ``not_submitted``.
    """

    do_stage: bool | None = None
    do_submit: bool = True

    def as_json(self) -> dict[str, JsonValue]:
        """The options as the ledger keeps them."""
        return {"do_stage": self.do_stage, "do_submit": self.do_submit}

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> LaunchOptions:
        """The options that an execution keeps; the defaults where it keeps none."""
        given = stored or {}
        stage = given.get("do_stage")
        return cls(
            do_stage=stage if isinstance(stage, bool) else None,
            do_submit=given.get("do_submit") is not False,
        )


AS_USUAL: Final = LaunchOptions()
"""What automation asks for."""
