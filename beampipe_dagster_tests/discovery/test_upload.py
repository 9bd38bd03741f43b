from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beampipe_dagster.discovery import upload as upload_module
from beampipe_dagster.discovery.archive import Upload
from beampipe_dagster.discovery.upload import MAX_COLUMNS, upload_digest, upload_document
from beampipe_dagster.errors import InputError

_PLAIN = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=20
).map(str.strip)


def parsed(upload: Upload) -> Any:
    from astropy.io.votable import parse  # noqa: PLC0415  # slow to import

    return parse(io.BytesIO(upload_document(upload)), verify="exception").get_first_table()


@settings(deadline=None)  # the first one imports a parser
@given(st.lists(st.tuples(_PLAIN, _PLAIN), max_size=5))
def test_a_reader_of_votables_sees_the_same_texts(rows: list[tuple[str, str]]) -> None:
    table = parsed(Upload("mine", ("a", "b"), tuple(rows)))
    assert [field.name for field in table.fields] == ["a", "b"]
    assert [[str(cell or "") for cell in row] for row in table.array.tolist()] == [list(row) for row in rows]


@pytest.mark.parametrize(
    "upload",
    [
        Upload("", ("a",), ()),
        Upload("my table", ("a",), ()),
        Upload("1st", ("a",), ()),
        Upload('x"; DROP', ("a",), ()),
        Upload("mine", (), ()),
        Upload("mine", ("a", "A"), ()),
        Upload("mine", ("a b",), ()),
        Upload("mine", tuple(f"c{number}" for number in range(MAX_COLUMNS + 1)), ()),
        Upload("mine", ("a", "b"), (("1",),)),
        Upload("mine", ("a",), (("nul\x00",),)),
        Upload("mine", ("a",), (("blank ",),)),
        Upload("mine", ("a",), (("half \ud800",),)),
    ],
)
def test_what_no_service_could_read_is_refused_before_it_is_sent(upload: Upload) -> None:
    with pytest.raises(InputError) as caught:
        upload_document(upload)
    assert caught.value.code == "invalid_upload"


def test_an_upload_has_a_longest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "MAX_BYTES", 1_000)
    with pytest.raises(InputError, match="bytes long"):
        upload_document(Upload("mine", ("a",), (("x" * 1_000,),)))


def test_a_digest_is_of_the_contents_and_tells_cells_apart() -> None:
    first = Upload("mine", ("a", "b"), (("ab", "c"),))
    assert upload_digest(None) == ""
    assert upload_digest(first) == upload_digest(Upload("MINE", ("a", "b"), (("ab", "c"),)))
    assert upload_digest(first) != upload_digest(Upload("mine", ("a", "b"), (("a", "bc"),)))
