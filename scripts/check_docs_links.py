"""See that every relative link, image and anchor of the documentation leads somewhere.

``check_docs_links.py [FILE ...]``, by default README.md, CHANGELOG.md and docs/*.md. No network is used:
links to other hosts are not followed. Prints one line for each broken link; exits with 1 when there is one.
"""  # noqa: INP001  # a script, not a package

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]

# In a lookahead, so that the image in the text of a link is found as well as the link.
_INLINE = re.compile(
    r"""(?=\[(?:[^\[\]\\]|\\.|\[[^\]]*\])*\]                     # [text], [![image](target)], ...
        \(\s*<?([^()\s>]*(?:\([^()\s]*\)[^()\s>]*)*)>?       # (target, which may hold (brackets)
        (?:\s+["'(][^)]*)?\))                              # and a "title")
    """,
    re.VERBOSE,
)
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)
_HTML = re.compile(r"<(?:img|a)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)[\"']", re.IGNORECASE)
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
_NAMED = re.compile(r"<a\b[^>]*?\b(?:id|name)=[\"']([^\"']+)[\"']", re.IGNORECASE)
_FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})[^\n]*\n.*?^ {0,3}\2[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


@cache
def text_of(path: Path) -> str:
    """A document without its code blocks, with as many lines."""
    text = path.read_text(encoding="utf-8")
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a document, as GitHub makes them from the headings, and those that are named."""
    text = text_of(path)
    found: set[str] = set(_NAMED.findall(text))
    seen: dict[str, int] = {}
    for heading in _HEADING.findall(text):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return frozenset(found)


def links(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the target of every link in a document."""
    text = _CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text_of(path))
    for pattern in (_INLINE, _REFERENCE, _HTML):
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start(1)) + 1, match[1]


def problem(path: Path, link: str) -> str | None:
    """What is wrong with a link, ``None`` when nothing is."""
    if _ELSEWHERE.match(link):
        return None
    place, _, anchor = link.partition("#")
    target = (path.parent / unquote(place.partition("?")[0])).resolve() if place else path.resolve()
    if not target.exists():
        return f"{link} does not exist"
    if not target.is_relative_to(ROOT) and path.resolve().is_relative_to(ROOT):
        return f"{link} is outside of the project"
    if anchor and target.suffix == ".md" and unquote(anchor).lower() not in anchors(target):
        return f"{link} has no such heading"
    return None


def main(arguments: list[str]) -> int:
    """Check the documents; the exit code."""
    paths = [Path(argument) for argument in arguments] or [
        *(path for name in ("README.md", "CHANGELOG.md") if (path := ROOT / name).exists()),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    count, problems = 0, []
    for path in paths:
        for line, link in sorted(links(path)):
            count += 1
            wrong = problem(path, link)
            if wrong:
                problems.append(f"{path}:{line}: {wrong}")
    sys.stdout.writelines(f"{text}\n" for text in problems)
    sys.stdout.write(f"{count} links in {len(paths)} documents, {len(problems)} broken\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
