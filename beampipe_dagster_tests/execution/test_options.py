from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.execution.options import AS_USUAL, LaunchOptions


@given(st.builds(LaunchOptions, st.none() | st.booleans(), st.booleans()))
def test_options_are_kept_as_they_were_given(options: LaunchOptions) -> None:
    assert LaunchOptions.of(options.as_json()) == options


def test_an_execution_without_options_does_as_usual() -> None:
    assert LaunchOptions.of(None) == LaunchOptions.of({}) == AS_USUAL == LaunchOptions(None, do_submit=True)
