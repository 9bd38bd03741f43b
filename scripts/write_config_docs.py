"""Write the reference pages of the two kinds of configuration from their models.

``write_config_docs.py [--check]`` writes docs/reference-project.md and docs/reference-profile.md; with
``--check`` it writes nothing and exits with 1 when a page is not what it would write.
"""  # noqa: INP001  # a script, not a package

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beampipe_dagster.config.schema import profile_schema, project_schema

ROOT = Path(__file__).resolve().parents[1]
WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "map",
    "null": "null",
}
MADE = "<!-- Made by scripts/write_config_docs.py from the models; change the models, not this page. -->"
PROJECT = """\
A survey is one YAML file. [A survey of your own](survey.md) tells what the parts are for; this page lists every
field. What has no default and is not required may be left out. Unknown fields are errors, except in `signature`.
`beampipe project validate FILE` checks a file and names line and column of what is wrong.

YAML here is YAML 1.2 with the values of JSON: `yes`, `on`, `0123` and `2024-01-01` are texts, there is no merge
key, and a key that stands twice in one mapping is an error.
"""
PROFILE = """\
A deployment profile says where the graphs of a survey are translated and run. It is a JSON document, stored with
`beampipe profile add FILE`. Unknown fields are errors, except in `deployment`, where they are warned of. A
profile that holds a password, a token or a key is refused: it names a slot in `ssh_credential`.
"""
NUMBERS = {2**63 - 1, 2**64 - 1, 2**32 - 1, -(2**63)}


def pages() -> dict[Path, str]:
    """The text of each page."""
    return {
        ROOT / "docs" / "reference-project.md": page("Reference: project files", PROJECT, project_schema()),
        ROOT / "docs" / "reference-profile.md": page(
            "Reference: deployment profiles", PROFILE, profile_schema()
        ),
    }


def page(title: str, introduction: str, schema: dict[str, Any]) -> str:
    """One page: the document itself, then each part where it is first mentioned."""
    lines = [f"# {title}", "", MADE, "", introduction, *table("The document", schema)]
    for name in mentioned(schema):
        lines.extend(table(name, schema["$defs"][name]))
    return "\n".join(lines).rstrip() + "\n"


def mentioned(schema: dict[str, Any]) -> list[str]:
    """The names of the parts, in the order in which a reader comes across them."""
    order: list[str] = []

    def walk(part: dict[str, Any]) -> None:
        for name in references(part["properties"]):
            if name not in order:
                order.append(name)
                walk(schema["$defs"][name])

    walk(schema)
    return order


def references(value: Any) -> Iterator[str]:  # noqa: ANN401  # any JSON
    """The names of the parts that a value refers to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rsplit("/", 1)[1]
        for key, inner in value.items():
            if key != "discriminator":
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def table(name: str, part: dict[str, Any]) -> list[str]:
    """A heading, what the part is, and its fields."""
    lines = [f"## {name}", ""]
    if name != "The document":
        lines.extend([part.get("description", ""), ""])
    lines.extend(["| Field | Type | Default | Meaning |", "|---|---|---|---|"])
    for field, about in part["properties"].items():
        required = field in part.get("required", ())
        cells = (
            f"`{field}`",
            type_of(about),
            "required" if required else default_of(about),
            str(about.get("description", "")),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def type_of(about: dict[str, Any]) -> str:
    """A field's type in words."""
    options = about.get("anyOf") or about.get("oneOf")
    inner = about.get("additionalProperties")
    if "$ref" in about:
        name = about["$ref"].rsplit("/", 1)[1]
        text = f"[{name}](#{name.lower()})"
    elif "const" in about or "enum" in about:
        text = ", ".join(f"`{word}`" for word in about.get("enum", [about.get("const")]))
    elif options:
        text = " or ".join(type_of(option) for option in options if option.get("type") != "null")
    elif about.get("type") == "array":
        text = f"list of {type_of(about['items'])}"
    elif about.get("type") == "object" and isinstance(inner, dict):
        text = f"map of {type_of(inner)}"
    else:
        text = WORDS.get(about.get("type", ""), "any value") + bounds(about)
    return text


def bounds(about: dict[str, Any]) -> str:
    """The bounds of a number, those of the machine's integers left out."""
    low, high = (None if about.get(key) in NUMBERS else about.get(key) for key in ("minimum", "maximum"))
    if low is not None and high is not None:
        return f", {low} to {high}"
    return f", at least {low}" if low is not None else ""


def default_of(about: dict[str, Any]) -> str:
    """A field's default; nothing where leaving it out means that there is none."""
    default = about.get("default")
    if default is None or default in ([], {}):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def main(arguments: list[str]) -> int:
    """Write the pages, or say which are out of date."""
    stale = 0
    for path, text in pages().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in arguments:
            message = f"{path.relative_to(ROOT)} is out of date: run scripts/write_config_docs.py"
            print(message)  # noqa: T201  # a command line's output
            stale = 1
        else:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
