"""Programs of Debian that tests speak to, installed or only unpacked (``scripts/unpack-debian.sh``)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

HOME = "BEAMPIPE_TEST_DEBIAN"
"""Names the directory of unpacked packages."""


def root() -> Path:
    """Where packages were unpacked: as the script does it, for the super-user and for others."""
    if given := os.environ.get(HOME):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/cache/beampipe-dagster/debian")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "beampipe-dagster" / "debian"


def find(path: str) -> Path | None:
    """A file below ``/usr`` of an unpacked package, else of an installed one."""
    return next((found for base in (root(), Path("/")) if (found := base / "usr" / path).exists()), None)


def stilts() -> list[str] | None:
    """The command that runs STILTS; ``None`` where it or Java is not there."""
    java = shutil.which("java")
    if java is None:
        return None
    if (found := find("share/java/starlink-ttools.jar")) is None:
        return None
    classes = f"{found.parent}/*"
    return [java, "-Djava.awt.headless=true", "-Xmx256m", "-cp", classes, "uk.ac.starlink.ttools.Stilts"]


def need(reason: str | None) -> None:
    """Skip the test for that reason, and fail it where everything must be there."""
    if reason is None:
        return
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(reason)
    pytest.skip(reason)
