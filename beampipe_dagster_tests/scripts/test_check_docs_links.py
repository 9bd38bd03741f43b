"""The check of the documentation's links finds what is broken, and only that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_docs_links.py"

GOOD = """# The first: `code` and more!

## Twice
## Twice

[same](#the-first-code-and-more), [again](#twice-1), [other](other.md#part-é), [web](https://example.org/x#y),
![picture](a%20b.png "title"), <img src="a b.png">, [mail](mailto:a@example.org), [named](#here)
<a id="here"></a> `[not a link](nowhere.md)` [reference][ref]

```text
[nor this](nowhere.md)
```

[ref]: other.md
"""


def check(path: Path) -> tuple[int, str]:
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), str(path)], capture_output=True, text=True, check=False
    )
    assert answer.stderr == ""
    return answer.returncode, answer.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "other.md").write_text("# Part é\n", encoding="utf-8")
    (tmp_path / "a b.png").touch()
    return tmp_path


def test_links_that_lead_somewhere_are_fine(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text(GOOD, encoding="utf-8")
    assert check(page) == (0, "9 links in 1 documents, 0 broken\n")


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("[a](missing.md)", "missing.md does not exist"),
        ("[a](other.md#nothing)", "other.md#nothing has no such heading"),
        ("[a](#nothing)", "#nothing has no such heading"),
        ("![a](missing.png)", "missing.png does not exist"),
        ('<img width="3" src="missing.svg">', "missing.svg does not exist"),
        ("[a]: missing.md", "missing.md does not exist"),
        ("[![badge](a%20b.png)](missing.md)", "missing.md does not exist"),
    ],
)
def test_a_broken_link_is_told_with_its_line(folder: Path, link: str, told: str) -> None:
    page = folder / "page.md"
    page.write_text(f"# Title\n\n{link}\n", encoding="utf-8")
    code, output = check(page)
    assert code == 1
    assert f"{page}:3: {told}\n" in output
