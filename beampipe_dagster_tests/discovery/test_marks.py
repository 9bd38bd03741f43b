from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.discovery.marks import Mark
from beampipe_dagster.errors import DataError

NOW = datetime(2026, 7, 1, 12, 30, 15, 999, tzinfo=UTC)


def mark(text: str) -> Mark:
    return Mark.of(text, column="c")


@pytest.mark.parametrize(
    ("text", "lag", "condition"),
    [
        ("2026-01-02T03:04:05Z", 1, "c >= '2026-01-02T02:04:05'"),
        ("2026-01-02 03:04:05.678", 24, "c >= '2026-01-01 03:04:05'"),
        ("2026-01-02", 24, "c >= '2026-01-01'"),
        ("2026-01-02T03:04:05+08:00", 0, "c >= '2026-01-01T19:04:05'"),
        ("61000", 12, "c >= 60999.5"),
        ("61000.25", 0, "c >= 61000.25"),
        ("6.1E4", 0, "c >= 61000"),
    ],
)
def test_the_condition_is_written_as_the_archive_writes_and_reaches_back(
    text: str, lag: int, condition: str
) -> None:
    assert mark(text).condition("c", lag_hours=lag) == condition


def test_a_time_as_text_sorts_before_all_that_begin_with_it() -> None:
    """Some archives keep times as text and compare them so."""
    condition = mark("2026-01-02T03:04:05.900Z").condition("c", lag_hours=0)
    assert condition.split("'")[1] <= "2026-01-02T03:04:05.900Z"
    assert condition.split("'")[1] <= "2026-01-02T03:04:05Z"


@pytest.mark.parametrize("text", ["", "soon", "NaN", "Infinity", "2026-13-01"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(DataError) as caught:
        mark(text)
    assert caught.value.code == "watermark_not_comparable"


def test_times_and_numbers_have_no_order() -> None:
    with pytest.raises(DataError, match="both times and numbers"):
        mark("2026-01-01").is_beyond(mark("61000"), column="c")


def test_nothing_lies_beyond_the_present() -> None:
    assert mark("2026-06-30T00:00:00Z").not_after(NOW).text == "2026-06-30T00:00:00Z"
    assert mark("2030-01-01T00:00:00Z").not_after(NOW).text == "2026-07-01T12:30:15"
    assert mark("2030-01-01").not_after(NOW).text == "2026-07-01"
    assert mark("99999").not_after(NOW).text.startswith("61222.52")
    assert mark("61000").not_after(NOW).text == "61000"


times = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1))  # noqa: DTZ001  # as archives give them


@given(first=times, second=times, form=st.sampled_from(["T", " "]))
def test_the_order_is_that_of_time(first: datetime, second: datetime, form: str) -> None:
    left, right = (mark(moment.isoformat(sep=form)) for moment in (first, second))
    assert left.is_beyond(right, column="c") == (first > second)


@given(moment=times, hours=st.integers(0, 10_000))
def test_a_row_at_the_mark_always_fulfils_its_condition(moment: datetime, hours: int) -> None:
    since = mark(moment.isoformat()).condition("c", lag_hours=hours).split("'")[1]
    assert datetime.fromisoformat(since) <= moment
