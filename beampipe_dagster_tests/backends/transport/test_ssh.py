"""The pool, on a real server."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import asyncssh
import pytest

from beampipe_dagster.backends.transport.budget import Limits
from beampipe_dagster.backends.transport.target import SshTarget
from beampipe_dagster.errors import (
    BackendError,
    BackendUnavailableError,
    BeampipeError,
    ConfigError,
    Retry,
    SubmissionUncertainError,
)
from beampipe_dagster.ledger import ssh_budget
from beampipe_dagster.ledger.tables_slurm import SshState
from beampipe_dagster_tests.backends.transport.conftest import Site, effects, reads
from beampipe_dagster_tests.support.sshd import new_sshd


def state(site: Site) -> ssh_budget.SshTargetRow:
    with site.ledger.read() as conn:
        return ssh_budget.get(conn, site.target.key)


def test_output_errors_input_and_exit_status_come_back(site: Site) -> None:
    found = reads(site.pool(), site.target, "cat; echo oops >&2; exit 7", stdin=b"caf\xc3\xa9 \xff\n")
    assert (found.exit_status, found.stdout, found.stderr) == (7, "café \ufffd\n", "oops\n")
    assert found.host == "127.0.0.1"


def test_many_commands_share_one_connection(site: Site) -> None:
    pool = site.pool()
    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda n: reads(pool, site.target, f"echo {n}").stdout, range(12)))
    assert found == [f"{n}\n" for n in range(12)]
    assert len(site.server.sessions()) == 1


def test_what_a_login_shell_prints_is_no_output(site: Site) -> None:
    site.server.stop()
    site.server.noise = "Welcome! 4711"
    site.server.start()
    for run in (reads, effects):
        found = run(site.pool(), site.target, "echo 12; echo err >&2")
        assert (found.stdout, found.stderr, found.exit_status) == ("12\n", "err\n", 0)


def test_an_account_without_a_shell_runs_nothing_and_says_so(site: Site) -> None:
    site.server.allow(site.key, 'command="echo This account is closed."')
    with pytest.raises(BackendError, match="This account is closed") as caught:
        effects(site.pool(), site.target, f"touch {site.server.home}/ran")
    assert (caught.value.code, caught.value.retry) == ("ssh_no_shell", Retry.LATER)
    assert not (site.server.home / "ran").exists()


def test_more_commands_than_the_server_has_sessions_wait_for_one(site: Site) -> None:
    site.server.restart(MaxSessions="2")
    pool = site.pool(max_channels=6)
    with ThreadPoolExecutor(6) as threads:
        found = list(
            threads.map(lambda n: effects(pool, site.target, f"sleep 0.2; echo {n}").stdout, range(6))
        )
    assert found == [f"{n}\n" for n in range(6)]
    assert len(site.server.sessions()) == 1


def test_a_server_that_refuses_starts_is_unreachable_and_left_alone_by_every_process(site: Site) -> None:
    site.server.restart(MaxStartups="1:100:1", LoginGraceTime="30")
    with ExitStack() as stack:
        greeting = b""
        while not greeting.startswith(b"SSH-2.0"):  # until its one unauthenticated connection is taken
            blocker = stack.enter_context(socket.create_connection(("127.0.0.1", site.server.port)))
            greeting = blocker.recv(20)
        with pytest.raises(BackendUnavailableError) as caught:
            reads(site.pool(), site.target, "true")
    assert (caught.value.code, caught.value.retry) == ("ssh_unreachable", Retry.LATER)
    with pytest.raises(BackendUnavailableError, match="left alone until") as again:
        reads(site.pool(), site.target, "true")
    assert again.value.details["state"] == "unreachable"


@pytest.mark.parametrize(
    ("run", "error", "code"),
    [
        (reads, BackendUnavailableError, "ssh_lost"),
        (effects, SubmissionUncertainError, "ssh_outcome_unknown"),
    ],
)
def test_a_connection_that_dies_while_a_command_runs_is_no_end(
    site: Site, run: Callable[..., object], error: type[BeampipeError], code: str
) -> None:
    pool = site.pool()
    began = site.server.home / "began"
    cutter = threading.Thread(target=_cut_when_there, args=(site,))
    cutter.start()
    with pytest.raises(error) as caught:
        run(pool, site.target, f"echo part; touch {began}; sleep 20")
    cutter.join()
    assert caught.value.code == code
    assert caught.value.details["class"] == "connectivity"
    assert reads(pool, site.target, "echo back").stdout == "back\n"


def _cut_when_there(site: Site) -> None:
    while not (site.server.home / "began").exists():
        time.sleep(0.02)
    site.server.cut()


def test_a_connection_that_died_while_nobody_used_it_is_made_anew(site: Site) -> None:
    pool = site.pool()
    effects(pool, site.target, "true")
    site.server.cut()
    assert effects(pool, site.target, "echo again").stdout == "again\n"


def test_a_command_that_takes_too_long_is_given_up(site: Site) -> None:
    pool = site.pool()
    with pytest.raises(BackendUnavailableError) as caught:
        reads(pool, site.target, "sleep 20", seconds=0.5)
    assert caught.value.details["class"] == "timeout"
    with pytest.raises(SubmissionUncertainError) as uncertain:
        effects(pool, site.target, "sleep 20", seconds=0.5)
    assert uncertain.value.retry is Retry.AFTER_RECONCILE


def test_an_output_of_ten_megabytes_is_read_or_refused_by_its_bound(site: Site) -> None:
    pool = site.pool()
    command = "head -c 10000000 /dev/zero | tr '\\0' x"
    assert len(reads(pool, site.target, command, max_bytes=10_000_000).stdout) == 10_000_000
    with pytest.raises(BackendError) as caught:
        reads(pool, site.target, command, max_bytes=1_000_000)
    assert caught.value.code == "ssh_output_too_long"
    with pytest.raises(SubmissionUncertainError):
        effects(pool, site.target, command, max_bytes=1_000_000)
    assert reads(pool, site.target, "echo fine; head -c 3000000 /dev/zero >&2").stdout == "fine\n"


def test_another_host_key_is_not_believed_and_stops_every_process(site: Site) -> None:
    site.server.new_host_key()
    site.server.restart()
    with pytest.raises(BackendUnavailableError) as caught:
        reads(site.pool(), site.target, "true")
    assert (caught.value.code, caught.value.details["class"]) == ("ssh_untrusted", "authorization")
    assert state(site).state is SshState.UNTRUSTED
    site.write("known_hosts", site.server.known_hosts())
    assert site.pool().ping(site.target).exit_status == 0
    assert (state(site).state, state(site).failures) == (SshState.OK, 0)


def test_a_revoked_host_key_is_refused_although_it_is_listed(site: Site) -> None:
    line = site.server.known_hosts()
    site.write("known_hosts", line + "@revoked * " + line.split(" ", 1)[1])
    with pytest.raises(BackendUnavailableError) as caught:
        reads(site.pool(), site.target, "true")
    assert caught.value.code == "ssh_untrusted"


def test_a_host_certificate_of_a_known_authority_is_believed(site: Site) -> None:
    authority = asyncssh.generate_private_key("ssh-ed25519")
    host = asyncssh.read_private_key(site.server.host_key)
    certificate = authority.generate_host_certificate(host, "login", principals=["127.0.0.1"])
    path = site.server.directory / "host_key-cert.pub"
    path.write_bytes(certificate.export_certificate())
    path.chmod(0o644)
    site.server.restart(HostCertificate=str(path))
    public = authority.export_public_key().decode()
    site.write("known_hosts", f"@cert-authority [127.0.0.*]:* {public}")
    assert reads(site.pool(), site.target, "echo in").stdout == "in\n"


def test_a_key_that_is_not_let_in_needs_a_login_and_nobody_knocks_again(site: Site) -> None:
    site.server.allow(asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises(BackendUnavailableError) as caught:
        effects(site.pool(), site.target, "true")
    assert (caught.value.code, caught.value.details["class"]) == ("ssh_needs_login", "authentication")
    assert state(site).state is SshState.NEEDS_LOGIN
    site.server.stop()  # nobody is asked: a dead server would be another error
    with pytest.raises(BackendUnavailableError, match="left alone") as again:
        effects(site.pool(), site.target, "true")
    assert again.value.code == "ssh_needs_login"
    assert state(site).failures == 1


def test_an_expired_key_needs_a_login_and_a_ping_ends_that(site: Site) -> None:
    site.server.allow(site.key, 'expiry-time="20200101"')
    pool = site.pool()
    with pytest.raises(BackendUnavailableError):
        reads(pool, site.target, "true")
    site.server.allow(site.key)
    assert pool.ping(site.target).exit_status == 0
    assert reads(site.pool(), site.target, "echo ok").stdout == "ok\n"


def test_a_login_node_that_is_down_is_passed_over(site: Site) -> None:
    # Another address of this machine, where nothing listens on that port.
    line = site.server.known_hosts()
    site.write("known_hosts", line + line.replace("127.0.0.1", "127.0.0.2"))
    target = SshTarget(
        hosts=("127.0.0.2", "127.0.0.1"), user=site.server.user, port=site.server.port, slot="hpc"
    )
    assert reads(site.pool(), target, "true").host == "127.0.0.1"


def test_the_way_may_lead_through_another_server(site: Site) -> None:
    with new_sshd() as jump:
        jump.allow(site.key)
        jump.start()
        site.write("proxy_jump", f"{jump.user}@127.0.0.1:{jump.port}\n")
        site.write("known_hosts", site.server.known_hosts())
        with pytest.raises(BackendUnavailableError) as caught:
            reads(site.pool(), site.target, "true")
        assert caught.value.code == "ssh_untrusted", "the jump host is to be known too"
        site.write("known_hosts", site.server.known_hosts() + jump.known_hosts())
        assert site.pool().ping(site.target).exit_status == 0
        assert len(jump.sessions()) == 1


def test_connections_of_all_processes_share_a_budget(site: Site) -> None:
    limits = Limits(max_connections=1)
    first = site.pool(limits=limits)
    reads(first, site.target, "true")
    with pytest.raises(BackendUnavailableError) as caught:
        reads(site.pool(limits=limits), site.target, "true", seconds=0.2)
    assert caught.value.code == "ssh_budget_timeout"
    first.close()
    assert reads(site.pool(limits=limits), site.target, "true").exit_status == 0


def test_commands_of_all_processes_keep_a_pace(site: Site) -> None:
    limits = Limits(commands_per_minute=120, burst=1)
    began = time.monotonic()
    for pool in (site.pool(limits=limits), site.pool(limits=limits)):
        reads(pool, site.target, "true")
        reads(pool, site.target, "true")
    assert time.monotonic() - began >= 1.4


def test_an_idle_connection_is_closed_and_its_permit_given_back(site: Site) -> None:
    pool = site.pool(idle_seconds=0.2)
    reads(pool, site.target, "true")
    deadline = time.monotonic() + 10
    while site.server.sessions() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert site.server.sessions() == []
    with site.ledger.read() as conn:
        assert ssh_budget.permits(conn, site.target.key, now=pool._clock.now()) == 0


def test_a_credential_that_cannot_be_used_is_found_before_any_host_is_asked(site: Site) -> None:
    site.write("private_key", site.key.export_private_key(), 0o644)
    with pytest.raises(ConfigError, match="mode 0644") as caught:
        reads(site.pool(), site.target, "true")
    assert (caught.value.code, caught.value.retry) == ("ssh_credential_exposed", Retry.LATER)
    with site.ledger.read() as conn:
        assert ssh_budget.everything(conn) == []


def test_an_agent_may_sign_instead_of_a_key(site: Site, tmp_path: Path) -> None:
    key = site.slot / "private_key"
    socket_path = f"/tmp/bp-agent-{uuid.uuid4().hex[:12]}"  # noqa: S108  # a socket's path has to be short
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket_path], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not Path(socket_path).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        adding = {"SSH_AUTH_SOCK": socket_path, "PATH": os.environ["PATH"]}
        site.env = {"SSH_AUTH_SOCK": socket_path, "BEAMPIPE_SSH_AGENT": "yes"}
        key.rename(tmp_path / "moved")
        with pytest.raises(BackendUnavailableError) as caught:
            reads(site.pool(), site.target, "true")
        assert caught.value.code == "ssh_needs_login", "it holds no key yet"
        subprocess.run(
            ["ssh-add", "-q", str(tmp_path / "moved")], env=adding, check=True, capture_output=True
        )
        assert site.pool().ping(site.target).exit_status == 0
    finally:
        agent.terminate()
        agent.wait(timeout=10)
        Path(socket_path).unlink(missing_ok=True)


def test_a_forked_process_makes_a_connection_of_its_own(site: Site) -> None:
    pool = site.pool()
    reads(pool, site.target, "true")
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        try:
            site.ledger.engine.dispose(close=False)
            os._exit(0 if reads(pool, site.target, "echo child").stdout == "child\n" else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert reads(pool, site.target, "echo parent").stdout == "parent\n"
