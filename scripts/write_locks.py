"""Write requirements/{runtime,dev,daliuge}.lock from what the two environments hold."""  # noqa: INP001  # a script

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"
HEADER = "# Written by `make lock`: every version, so that an environment is the same everywhere.\n"

PYTHONS = ("3.11", "3.12", "3.13")
OLDEST = "3.11.2"  # Debian 12
SYSTEMS = (("linux", "Linux"), ("darwin", "Darwin"))

# A part of every environment. (wheel is not one: DALiuGE requires it.)
TOOLS = {"pip", "setuptools"}

# Needed on some systems only, and not by an interface but by a file of the system's own.
MARKERS = {"uvloop": 'sys_platform != "win32"'}


def normal(name: str) -> str:
    """The one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def environments() -> Iterable[dict[str, str]]:
    """The Pythons and systems that a lock is for."""
    for version in PYTHONS:
        for platform, system in SYSTEMS:
            yield {
                "python_version": version,
                "python_full_version": f"{version}.0",
                "sys_platform": platform,
                "platform_system": system,
            }


def closure(requirements: Iterable[str]) -> set[str]:
    """Everything that the requirements need, on any of the systems, as far as it is installed."""
    found: set[tuple[str, str]] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        for extra in {"", *requirement.extras}:
            key = (normal(requirement.name), extra)
            if key in found:
                continue
            found.add(key)
            for text in distribution(requirement.name).requires or []:
                child = Requirement(text)
                if needed(child, extra) and installed(child):
                    todo.append(child)
    return {name for name, _ in found}


def needed(requirement: Requirement, extra: str) -> bool:
    """Whether any of the systems needs it for *extra*."""
    if requirement.marker is None:
        return extra == ""
    marker = requirement.marker
    return any(marker.evaluate({**env, "extra": extra}) for env in environments())


def installed(requirement: Requirement) -> bool:
    """Whether it is here; what only another system needs is not, and is told."""
    try:
        distribution(requirement.name)
    except ModuleNotFoundError:
        sys.stderr.write(f"not in this environment, so not in the lock: {requirement}\n")
        return False
    return True


def line(name: str) -> str:
    """The lock's line for an installed distribution."""
    found = distribution(name)
    tell_if_too_new(name, found.metadata["Requires-Python"])
    marker = MARKERS.get(normal(name))
    pinned = f"{found.metadata['Name']}=={found.version}"
    return f"{pinned}; {marker}" if marker else pinned


def tell_if_too_new(name: str, requires: str | None) -> None:
    """Tell of a version that the oldest Python cannot have: hold it back where it is required."""
    if requires and not SpecifierSet(requires).contains(OLDEST):
        sys.stderr.write(f"{name} needs Python {requires}, and the lock is for {OLDEST} too\n")


def write(name: str, lines: Iterable[str]) -> None:
    """Write one lock."""
    text = "\n".join(sorted(lines, key=str.lower))
    (LOCKS / f"{name}.lock").write_text(f"{HEADER}{text}\n", encoding="utf-8")


def main() -> None:
    """Write all three."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime = closure(project["dependencies"])
    dev = closure(project["optional-dependencies"]["dev"]) - runtime
    write("runtime", map(line, runtime))
    write("dev", map(line, dev))
    answer = subprocess.run(  # noqa: S603  # the project's own environment
        [ROOT / ".venv-daliuge/bin/python", "-m", "pip", "inspect", "--local"],
        check=True,
        capture_output=True,
    )
    packages = [item["metadata"] for item in json.loads(answer.stdout)["installed"]]
    packages = [item for item in packages if normal(item["name"]) not in TOOLS]
    for item in packages:
        tell_if_too_new(item["name"], item.get("requires_python"))
    write("daliuge", (f"{item['name']}=={item['version']}" for item in packages))


if __name__ == "__main__":
    main()
