from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.discovery.staging.redaction import conceal, hidden, place
from beampipe_dagster.errors import ArchiveError

SECRET = "X-Amz-Signature=0f840d8b"  # noqa: S105  # of a test


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"GET https://h/a.tar?{SECRET}&x=1 failed", "GET https://h/a.tar?... failed"),
        (
            f"Max retries exceeded with url: /data/async?ID=a&{SECRET} (Caused",
            "Max retries exceeded with url: /data/async?... (Caused",
        ),
        (f'{{"url": "https://h/a?{SECRET}"}}', '{"url": "https://h/a?..."}'),
        ("https%3A%2F%2Fh%2Fa%3FX-Amz-Signature%3Dabc end", "https%3A%2F%2Fh%2Fa?... end"),
        ("https://user:word@h/a", "https://***@h/a"),
        ("why? because a = b", "why? because a = b"),
        ("is it there?", "is it there?"),
    ],
)
def test_the_queries_of_urls_are_hidden(text: str, shown: str) -> None:
    assert hidden(text) == shown


@given(before=st.text(max_size=30), after=st.text(max_size=30))
def test_a_secret_in_a_query_is_hidden_whatever_stands_around_it(before: str, after: str) -> None:
    assert "0f840d8b" not in hidden(f"{before} https://h/p?a=b&{SECRET} {after}")


@given(text=st.text(max_size=200))
def test_hiding_twice_is_hiding_once(text: str) -> None:
    once = hidden(text)
    assert hidden(once) == once


def test_a_place_is_a_url_without_its_query() -> None:
    assert place(f"https://u:p@h/a/b?{SECRET}#c") == "https://***@h/a/b"


def test_an_error_shows_no_query_in_its_message_nor_in_its_details() -> None:
    url = f"https://h/a?{SECRET}"
    error = ArchiveError(f"at {url}", details={"urls": [url, {"again": url}], "number": 3})
    conceal(error)
    assert SECRET not in str(error)
    assert error.as_dict()["details"] == {
        "urls": ["https://h/a?...", {"again": "https://h/a?..."}],
        "number": 3,
    }
