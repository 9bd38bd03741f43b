"""Files over SFTP, on a real server."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import pytest

from beampipe_dagster.errors import BackendError, BackendUnavailableError, InputError
from beampipe_dagster_tests.backends.transport.conftest import Site


def test_a_file_arrives_whole_closed_to_others_and_replaces_one_that_was_there(site: Site) -> None:
    files, path = site.files(site.pool()), site.server.home / "a graph"
    data = os.urandom(3_000_000)
    for content in (b"old", data):
        found = files.upload(site.target, str(path), content)
        assert (found.size, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in path.parent.iterdir()] == ["a graph"]


def test_an_upload_that_is_cut_off_leaves_what_was_there(site: Site) -> None:
    pool = site.pool()
    files, path = site.files(pool), site.server.home / "graph"
    files.upload(site.target, str(path), b"old")
    stop = threading.Event()

    def cut() -> None:
        while not stop.is_set():
            if list(site.server.home.glob("graph.part-*")):
                site.server.cut()
                return
            time.sleep(0.001)

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        with pytest.raises(BackendUnavailableError) as caught:
            files.upload(site.target, str(path), os.urandom(60_000_000))
    finally:
        stop.set()
        cutter.join()
    assert caught.value.code == "ssh_lost"
    assert path.read_bytes() == b"old"
    files.upload(site.target, str(path), b"new")
    assert path.read_bytes() == b"new"


def test_a_directory_that_is_not_there_is_refused_with_the_place(site: Site) -> None:
    files = site.files(site.pool())
    with pytest.raises(BackendError, match="/nowhere/graph") as caught:
        files.upload(site.target, "/nowhere/graph", b"x")
    assert caught.value.code == "remote_file_refused"


def test_a_download_is_bounded_and_a_file_that_is_not_there_is_none(site: Site) -> None:
    files, path = site.files(site.pool()), site.server.home / "log"
    assert files.download(site.target, str(path), max_bytes=10) is None
    path.write_bytes(b"0123456789abc")
    assert files.download(site.target, str(path), max_bytes=20) == b"0123456789abc"
    assert files.download(site.target, str(path), max_bytes=3, tail=True) == b"abc"
    with pytest.raises(BackendError) as caught:
        files.download(site.target, str(path), max_bytes=3)
    assert caught.value.code == "remote_file_too_long"


@pytest.mark.parametrize("path", ["graph", "/a/../b", "/a//b", "/a\0b"])
def test_a_path_is_absolute_and_plain(site: Site, path: str) -> None:
    with pytest.raises(InputError):
        site.files(site.pool()).upload(site.target, path, b"x")
