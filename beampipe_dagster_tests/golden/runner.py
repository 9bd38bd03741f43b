"""Case files, areas, verdicts: everything of the replay but its command line."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml

import beampipe_dagster_tests.golden as package
from beampipe_dagster.config.canonical import JsonValue, canonical_json, parse_json
from beampipe_dagster.errors import BeampipeError

GoldenFunction = Callable[[JsonValue], JsonValue]

_SHOWN = 300
_LEAD = 60


class ReplayError(Exception):
    """The replay itself cannot be done: no such directory, area or case file."""


@dataclass(frozen=True, slots=True)
class Case:
    """One known case, its files already read into the input."""

    area: str
    name: str
    fn: str
    input: JsonValue
    expected: JsonValue


@dataclass(frozen=True, slots=True)
class Deviation:
    """A rule by which the product answers otherwise on purpose.

    Parameters
    ----------
    name
        Short, for the report.
    reason
        Why the product's answer is the better one.
    applies
        Whether the rule is about this case; decides by what the case holds, never by its name.
    agrees
        Whether an answer is the one that the rule calls for; without it any answer is.
    """

    name: str
    reason: str
    applies: Callable[[Case], bool]
    agrees: Callable[[Case, JsonValue], bool] | None = None

    def explains(self, case: Case, got: JsonValue) -> bool:
        """Whether this rule is why the answer is another one."""
        return self.applies(case) and (self.agrees is None or self.agrees(case, got))


class Verdict(StrEnum):
    """What became of a case."""

    PASSED = "passed"
    DEVIATES = "deviates"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case, its verdict, and what to show of it."""

    case: Case
    verdict: Verdict
    got: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Area:
    """The functions and the rules of one area."""

    name: str
    functions: Mapping[str, GoldenFunction]
    deviations: Sequence[Deviation] = ()


def default_directory() -> Path:
    """``BEAMPIPE_GOLDEN_DIR``, else ``shared/reference/golden`` beside the repository."""
    given = os.environ.get("BEAMPIPE_GOLDEN_DIR")
    if given:
        return Path(given)
    return Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "golden"


def built_areas() -> list[str]:
    """The names of all areas that have a module, sorted."""
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name.removeprefix("area_") for name in names if name.startswith("area_"))


def load_area(name: str) -> Area:
    """Import an area's module."""
    if name not in built_areas():
        raise ReplayError(f"there is no area {name!r}; built: {', '.join(built_areas())}")
    module = importlib.import_module(f"{package.__name__}.area_{name}")
    return Area(name, module.FUNCTIONS, tuple(getattr(module, "DEVIATIONS", ())))


def replay(
    directory: Path, *, areas: Sequence[str] = (), files: Path | None = None
) -> dict[str, list[Outcome]]:
    """Replay the case files of a directory.

    Parameters
    ----------
    directory
        Holds ``<area>.json``.
    areas
        Which; without any, those that have both a file and a module.
    files
        What ``@file:`` is relative to; by default the directory's parent.

    Returns
    -------
    dict
        By area, an outcome for each case that names a function.
    """
    if not directory.is_dir():
        raise ReplayError(f"{directory} is not a directory")
    root = (files or directory.resolve().parent).resolve()
    wanted = areas or [name for name in built_areas() if (directory / f"{name}.json").is_file()]
    return {name: replay_area(load_area(name), directory / f"{name}.json", files=root) for name in wanted}


def replay_area(area: Area, path: Path, *, files: Path) -> list[Outcome]:
    """Replay one case file; cases without a function are left out."""
    try:
        document = parse_json(path.read_bytes(), name=str(path))
    except OSError as error:
        raise ReplayError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(document, list):
        raise ReplayError(f"{path} is not a list of cases")
    return [
        _outcome(area, entry, files)
        for entry in document
        if isinstance(entry, dict) and isinstance(entry.get("fn"), str)
    ]


def _outcome(area: Area, entry: dict[str, JsonValue], files: Path) -> Outcome:
    case = Case(
        area=area.name,
        name=str(entry.get("name")),
        fn=str(entry["fn"]),
        input=entry.get("input"),
        expected=entry.get("expected"),
    )
    function = area.functions.get(case.fn)
    if function is None:
        known = ", ".join(sorted(area.functions))
        return Outcome(case, Verdict.FAILED, "-", f"no fn {case.fn!r} here (only {known})")
    try:
        case = Case(area.name, case.name, case.fn, with_files(case.input, files), case.expected)
        got = function(case.input)
        text = canonical_json(got)
    except BeampipeError as error:
        return Outcome(case, Verdict.FAILED, "-", str(error))
    except Exception as error:  # noqa: BLE001  # one broken case must not end the replay
        return Outcome(case, Verdict.FAILED, "-", f"{type(error).__name__}: {error}")
    if text == canonical_json(case.expected):
        return Outcome(case, Verdict.PASSED, text)
    for deviation in area.deviations:
        if deviation.explains(case, got):
            return Outcome(case, Verdict.DEVIATES, text, f"{deviation.name}: {deviation.reason}")
    return Outcome(case, Verdict.FAILED, text)


def with_files(value: JsonValue, root: Path) -> JsonValue:
    """The value with each ``@file:<path>[#yaml path]`` replaced by what is there."""
    if isinstance(value, str):
        return _from_file(value, root) if value.startswith("@file:") else value
    if isinstance(value, list):
        return [with_files(element, root) for element in value]
    if isinstance(value, dict):
        return {key: with_files(element, root) for key, element in value.items()}
    return value


def _from_file(reference: str, root: Path) -> JsonValue:
    name, _, inner = reference.removeprefix("@file:").partition("#")
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ReplayError(f"{reference} leaves {root}")
    text = path.read_text(encoding="utf-8")
    if not inner:
        return text
    found = yaml.safe_load(text)
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", inner):
        found = found[int(index)] if index else found[key]
    result: JsonValue = found
    return result


def shortened(expected: str, got: str) -> tuple[str, str]:
    """Both texts, cut to the part in which they differ when they are long."""
    pairs = enumerate(zip(expected, got, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(got)))
    start = max(0, same - _LEAD) if max(len(expected), len(got)) > _SHOWN else 0

    def cut(text: str) -> str:
        head = "..." if start else ""
        tail = "..." if len(text) > start + _SHOWN else ""
        return head + text[start : start + _SHOWN] + tail

    return cut(expected), cut(got)
