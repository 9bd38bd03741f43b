"""The supervisor over real child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.errors import BeampipeError, ConfigError
from beampipe_dagster.sandbox.process import ProcessSpec
from beampipe_dagster.sandbox.supervisor import Event, EventKind, Limits, Supervisor
from beampipe_dagster_tests.sandbox.supervising import SERVE, eventually, parent, spec, tagged

REPOSITORY = Path(__file__).parents[2]
QUICK = Limits(ready_timeout=20, grace=2, backoff=0.05, backoff_cap=0.2, max_restarts=3, window=60, poll=0.02)

STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SERVE}"

# Its own session, and a parent that is gone: out of reach of process groups and of parent ids.
DAEMONISED = textwrap.dedent("""
    import os, pathlib, subprocess, sys, time
    stay = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", sys.argv[2]]
    fork = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
    subprocess.run([sys.executable, "-I", "-S", "-c", fork, *stay], check=True)
    subprocess.Popen(stay)
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(600)
""")

NEEDS_SIGINT = f"import signal; assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN; {SERVE}"


@pytest.fixture
def tag() -> Iterator[str]:
    """A word that only this test's processes carry; none of them may outlive the test."""
    word = f"tag-{uuid.uuid4().hex}"
    yield word
    left = tagged(word)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def supervisor(
    *stages: list[ProcessSpec], folder: Path, limits: Limits = QUICK
) -> tuple[Supervisor, list[Event]]:
    events: list[Event] = []
    made = Supervisor(
        stages=stages,
        log_dir=folder,
        clock=SystemClock(),
        on_event=events.append,
        limits=limits,
    )
    return made, events


def kinds(events: list[Event], name: str) -> list[EventKind]:
    return [event.kind for event in events if event.spec.name == name]


def test_a_stage_starts_only_when_the_one_before_it_serves(tmp_path: Path, tag: str) -> None:
    one, two = spec("one", folder=tmp_path, tag=tag), spec("two", folder=tmp_path, tag=tag)
    seen: list[tuple[int, bool]] = []
    service, events = supervisor([one], [two], folder=tmp_path)
    with service:
        ready = tmp_path / "two.ready"
        assert service.start(after_stage=lambda index: seen.append((index, ready.exists())))
        assert set(service.pids()) == {"one", "two"}
        assert len(tagged(tag)) == 2
    assert seen == [(0, False), (1, True)]
    told = [(event.kind, event.spec.name) for event in events]
    assert told == [
        (EventKind.STARTING, "one"),
        (EventKind.READY, "one"),
        (EventKind.STARTING, "two"),
        (EventKind.READY, "two"),
        (EventKind.STOPPING, "two"),
        (EventKind.STOPPED, "two"),
        (EventKind.STOPPING, "one"),
        (EventKind.STOPPED, "one"),
    ]


def test_the_output_of_a_child_is_in_its_log_and_the_log_before_is_kept(tmp_path: Path, tag: str) -> None:
    (tmp_path / "one.log").write_text("the run before\n")
    code = f"import sys; print('out', flush=True); print('err', file=sys.stderr); {SERVE}"
    service, _ = supervisor([spec("one", code, folder=tmp_path, tag=tag)], folder=tmp_path)
    with service:
        service.start()
    assert (tmp_path / "one.log").read_text() == "out\nerr\n"
    assert (tmp_path / "one.log.1").read_text() == "the run before\n"


def test_a_child_that_ends_before_it_serves_is_named_with_its_last_words(tmp_path: Path, tag: str) -> None:
    good = spec("good", folder=tmp_path, tag=tag)
    bad = spec("bad", "import sys; sys.exit('no such thing')", folder=tmp_path, tag=tag)
    service, _ = supervisor([good], [bad], folder=tmp_path)
    with pytest.raises(BeampipeError) as caught:
        service.start()
    error = caught.value
    assert error.code == "process_failed"
    assert "the bad process (bad) exited with code 1 before it was ready" in error.message
    assert "no such thing" in error.hint
    assert str(tmp_path / "bad.log") in error.hint
    assert not tagged(tag)


def test_a_program_that_does_not_exist_is_an_error_that_names_it(tmp_path: Path) -> None:
    lost = ProcessSpec(
        name="lost",
        argv=("/no/such/program",),
        env={},
        cwd=tmp_path,
        ready=lambda: False,
        describe="a lost program",
    )
    service, _ = supervisor([lost], folder=tmp_path)
    with pytest.raises(BeampipeError, match=r"cannot start /no/such/program: No such file"):
        service.start()


def test_a_child_that_never_serves_is_an_error_and_everything_is_stopped(tmp_path: Path, tag: str) -> None:
    limits = Limits(ready_timeout=0.3, grace=2, poll=0.02)
    code = f"print('still thinking', flush=True); {SERVE}"
    slow = spec("slow", code, folder=tmp_path, tag=tag, ready=lambda: False)
    good = spec("good", folder=tmp_path, tag=tag)
    service, _ = supervisor([good, slow], folder=tmp_path, limits=limits)
    with pytest.raises(BeampipeError) as caught:
        service.start()
    assert caught.value.code == "process_not_ready"
    assert "slow" in caught.value.message
    assert "still thinking" in caught.value.hint
    assert not tagged(tag)


def test_a_stop_during_the_start_gives_it_up(tmp_path: Path, tag: str) -> None:
    stop = threading.Event()

    def stop_it() -> bool:
        stop.set()
        return False

    never = spec("never", folder=tmp_path, tag=tag, ready=stop_it)
    service, _ = supervisor([never], folder=tmp_path)
    with service:
        assert service.start(stop=stop) is False
    assert not tagged(tag)


def test_an_error_between_two_stages_stops_everything(tmp_path: Path, tag: str) -> None:
    def seed(_stage: int) -> None:
        raise ConfigError("the seed is broken")

    service, _ = supervisor([spec("one", folder=tmp_path, tag=tag)], folder=tmp_path)
    with pytest.raises(ConfigError, match="the seed is broken"):
        service.start(after_stage=seed)
    assert not tagged(tag)


def test_a_child_that_ends_is_started_again(tmp_path: Path, tag: str) -> None:
    service, events = supervisor([spec("one", folder=tmp_path, tag=tag)], folder=tmp_path)
    with service:
        service.start()
        first = service.pids()["one"]
        os.kill(first, signal.SIGKILL)

        def back() -> bool:
            service.look()
            return service.pids().get("one", first) != first

        assert eventually(back)
        service.look()
        exits = [event.message for event in events if event.kind is EventKind.EXITED]
        assert len(exits) == 1
        assert "was ended by SIGKILL" in exits[0]
        assert kinds(events, "one")[-2:] == [EventKind.STARTING, EventKind.READY]


def test_what_a_crashed_child_left_behind_is_gone_before_it_is_started_again(
    tmp_path: Path, tag: str
) -> None:
    child = spec("one", DAEMONISED, folder=tmp_path, tag=tag)
    service, events = supervisor([child], folder=tmp_path)
    with service:
        service.start()
        before = tagged(tag)
        assert len(before) == 3
        os.kill(service.pids()["one"], signal.SIGKILL)

        def crashed() -> bool:
            service.look()
            return EventKind.EXITED in kinds(events, "one")

        assert eventually(crashed)
        assert not tagged(tag) & before


def test_a_child_that_crashes_again_and_again_ends_everything(tmp_path: Path, tag: str) -> None:
    good = spec("good", folder=tmp_path, tag=tag)
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); sys.exit('out of luck')"
    bad = spec("bad", f"import time; time.sleep(0.3); {code}", folder=tmp_path, tag=tag)
    (tmp_path / "bad.ready").touch()
    service, events = supervisor([good, bad], folder=tmp_path)
    service.start()
    with pytest.raises(BeampipeError) as caught:
        service.watch(threading.Event())
    assert caught.value.code == "process_gave_up"
    assert "the bad process (bad) exited with code 1, after 3 restarts" in caught.value.message
    assert "out of luck" in caught.value.hint
    assert kinds(events, "bad").count(EventKind.STARTING) == 4
    assert not tagged(tag)


def test_the_wait_before_a_restart_doubles_up_to_its_cap(tmp_path: Path, tag: str) -> None:
    bad = spec("bad", "import time; time.sleep(0.1)", folder=tmp_path, tag=tag, ready=lambda: True)
    limits = Limits(grace=1, backoff=0.02, backoff_cap=0.05, max_restarts=3, window=60, poll=0.01)
    service, events = supervisor([bad], folder=tmp_path, limits=limits)
    service.start()
    with pytest.raises(BeampipeError):
        service.watch(threading.Event())
    waits = [event.seconds for event in events if event.kind is EventKind.EXITED]
    assert waits == [0.02, 0.04, 0.05]


def test_the_end_of_a_child_that_is_not_restarted_ends_everything(tmp_path: Path, tag: str) -> None:
    good = spec("good", folder=tmp_path, tag=tag)
    once = spec("once", folder=tmp_path, tag=tag, restart=False)
    service, _ = supervisor([good, once], folder=tmp_path)
    service.start()
    os.kill(service.pids()["once"], signal.SIGTERM)
    with pytest.raises(BeampipeError, match=r"once.*was ended by SIGTERM, and it is not restarted"):
        service.watch(threading.Event())
    assert not tagged(tag)


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path, tag: str) -> None:
    limits = Limits(ready_timeout=20, grace=0.3, poll=0.02)
    stubborn = spec("stubborn", STUBBORN, folder=tmp_path, tag=tag)
    service, events = supervisor([stubborn], folder=tmp_path, limits=limits)
    service.start()
    service.shut_down()
    assert kinds(events, "stubborn")[-1] is EventKind.STOPPED
    assert not tagged(tag)


def test_hurry_gives_up_the_grace(tmp_path: Path, tag: str) -> None:
    limits = Limits(ready_timeout=20, grace=600, poll=0.02)
    stubborn = spec("stubborn", STUBBORN, folder=tmp_path, tag=tag)
    service, _ = supervisor([stubborn], folder=tmp_path, limits=limits)
    service.start()
    service.hurry()
    service.shut_down()
    assert not tagged(tag)


def test_what_a_child_started_in_a_session_of_its_own_ends_too(tmp_path: Path, tag: str) -> None:
    service, _ = supervisor([spec("one", DAEMONISED, folder=tmp_path, tag=tag)], folder=tmp_path)
    with service:
        service.start()
        assert len(tagged(tag)) == 3
    assert not tagged(tag)


def test_two_children_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = [spec("one", folder=tmp_path), spec("one", folder=tmp_path)]
    with pytest.raises(ConfigError, match="same name"):
        supervisor(twice, folder=tmp_path)


MAIN = textwrap.dedent("""
    import pathlib, sys, threading
    from beampipe_dagster.clock import SystemClock
    from beampipe_dagster.sandbox.supervisor import Limits, Supervisor, stop_on_signals
    from beampipe_dagster_tests.sandbox.supervising import spec
    from beampipe_dagster_tests.sandbox.test_supervisor import DAEMONISED, STUBBORN

    folder, tag = pathlib.Path(sys.argv[1]), sys.argv[2]
    stages = [
        [spec("deep", DAEMONISED, folder=folder, tag=tag)],
        [spec("stubborn", STUBBORN, folder=folder, tag=tag)],
    ]
    stop = threading.Event()
    service = Supervisor(
        stages=stages, log_dir=folder, clock=SystemClock(), limits=Limits(grace=0.5)
    )
    with service, stop_on_signals(stop, again=service.hurry):
        service.start(stop=stop)
        (folder / "up").touch()
        service.watch(stop)
""")


@pytest.fixture
def program(tmp_path: Path, tag: str) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor in a process of its own, as a shell without job control starts it: no SIGINT."""
    command = [sys.executable, "-c", MAIN, str(tmp_path), tag]
    process = subprocess.Popen(["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *command], cwd=REPOSITORY)
    try:
        assert eventually((tmp_path / "up").exists)
        assert len(tagged(tag) - {process.pid}) == 4
        yield process
    finally:
        process.kill()
        process.wait()


def test_kill_9_of_the_supervisor_leaves_no_process(program: subprocess.Popen[bytes], tag: str) -> None:
    program.kill()
    program.wait()
    assert eventually(lambda: not tagged(tag))


def test_kill_9_of_the_supervisor_leaves_no_process_when_its_guard_was_killed_before(
    program: subprocess.Popen[bytes], tag: str
) -> None:
    def guards() -> set[int]:
        return {pid for pid in tagged("guard.py") if parent(pid) == program.pid}

    first = guards()
    assert len(first) == 1
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: bool(guards() - first))
    program.kill()
    program.wait()
    assert eventually(lambda: not tagged(tag))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_with_success(
    program: subprocess.Popen[bytes], tag: str, number: signal.Signals
) -> None:
    program.send_signal(number)
    assert program.wait(timeout=20) == 0
    assert not tagged(tag)


def test_kill_9_of_the_supervisor_and_ctrl_c_together_leave_no_process(
    program: subprocess.Popen[bytes], tag: str
) -> None:
    program.send_signal(signal.SIGINT)
    program.kill()
    program.wait()
    assert eventually(lambda: not tagged(tag))


def test_a_child_can_be_interrupted_although_the_supervisor_ignores_it(
    tmp_path: Path,
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        service, _ = supervisor([spec("one", NEEDS_SIGINT, folder=tmp_path)], folder=tmp_path)
        with service:
            assert service.start()
    finally:
        signal.signal(signal.SIGINT, before)
