"""The sandbox archive as a validator sees it: STILTS' taplint, which checks a TAP service against its standards."""

from __future__ import annotations

import re
import subprocess

import pytest

from beampipe_dagster.sandbox.archive.server import ArchiveServer
from beampipe_dagster_tests.support import debian

# What a service need not have: an observation plan, examples, and, for a catalogue, ObsCore.
_ABSENT = re.compile(r"F-(LOC-NOTP|EXA-EXNO|OBS-NOTB)-")


@pytest.mark.parametrize("archive", ["casda", "vizier"])
def test_a_validator_finds_nothing_wrong_with_the_archive(shared: ArchiveServer, archive: str) -> None:
    command = debian.stilts()
    debian.need(None if command else "STILTS or Java is not there; scripts/unpack-debian.sh gets STILTS")
    done = subprocess.run(
        [*(command or []), "taplint", f"tapurl={shared.base_url}/{archive}/tap", "report=EWFS"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if re.match(r"[EWF]-", line)]
    assert [line for line in found if not _ABSENT.match(line)] == []
    # It came to its end, and had looked at what it was meant to.
    assert "Totals: Errors: 0; Warnings: 0" in done.stdout, done.stdout + done.stderr
    for section in ("TMV", "CPV", "QGE", "QPO", "QAS", "UWS", "MDQ", "UPL"):
        assert f"Section {section}" in done.stdout
