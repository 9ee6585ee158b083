"""The fork server and its workers: what a job gets, how it can end, and that nothing stays behind.

`unavailable` of a backend is the shortest way into a worker: what it returns comes back as an event.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

import misbehaving
from convbench.registry import ConvbenchError
from convbench.suites.processes.probe import survey
from convbench.suites.processes.protocol import Availability, AvailabilityJob, Done, Event, FitJob, Lines
from convbench.suites.processes.supervisor import ExitStatus, Supervisor
from convbench.suites.processes.versions import python_environment
from misbehaving import wait_until

PLUGIN = """
    import ctypes, json, os, signal, subprocess, sys, threading, time
    from convbench.registry import Backend, Dataset, Images, hookimpl

    def fresh():
        seen = getattr(sys, "_seen", 0)
        sys._seen = seen + 1
        return str(seen)

    def descriptors():
        return json.dumps({name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                           if os.path.exists(f"/proc/self/fd/{name}")})

    def denormals():
        import torch
        torch.set_num_threads(2)
        torch.set_flush_denormal(True)
        return str(int((torch.full((1_000_000,), 1e-30) * 1e-10).count_nonzero()))

    def writes_to_data():
        for descriptor in range(3, 64):
            try:
                name = f"/proc/self/fd/{descriptor}"
                if os.path.isfile(name):
                    os.chmod(name, 0o600)
                    os.pwrite(os.open(name, os.O_RDWR), b"garbage", 0)
            except OSError:
                pass

    def zeros(root=None):
        import torch
        images, labels = torch.zeros(9, 1, 8, 8, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64)
        return Images("zeros", images, labels, images, labels)

    def shouts():
        from convbench.suites import worker
        for descriptor in range(3, 64):
            try:
                if "pipe" in os.readlink(f"/proc/self/fd/{descriptor}"):
                    for _ in range(80):
                        os.write(descriptor, b"x" * 2**20)
            except OSError:
                pass
        return "heard"

    def child():
        subprocess.Popen(["sleep", "SLEEP"], start_new_session=True)
        subprocess.Popen(["sleep", "SLEEP"])

    def regicide():
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)

    CHECKS = {
        "fresh": fresh,
        "descriptors": descriptors,
        "denormals": denormals,
        "writes-to-data": writes_to_data,
        "shouts": shouts,
        "child": child,
        "sleeps": lambda: time.sleep(1000),
        "stops": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "quits": lambda: os._exit(3),
        "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "regicide": regicide,
        "echo": lambda: json.dumps(dict(os.environ)),
        "pid": lambda: f"{os.getpid()} {os.getppid()} {os.getsid(0)} {threading.active_count()}",
    }

    @hookimpl
    def convbench_backends():
        return [Backend(name, "a fake", load=dict, unavailable=check) for name, check in CHECKS.items()]

    @hookimpl
    def convbench_datasets():
        return [Dataset("zeros", "a fake", load=zeros)]
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("supervisor") / "log"


@pytest.fixture(scope="module")
def supervisor(log: Path) -> Iterator[Supervisor]:
    """One for all tests of this file: what one of them does to it must not harm the next."""
    site = misbehaving.install(log.with_name("site"))
    (site / "misbehaving_plugins.py").write_text(dedent(PLUGIN).replace("SLEEP", misbehaving.SLEEP))
    with misbehaving.on_path(site), Supervisor(log, threads=1) as supervisor:
        yield supervisor


def ask(supervisor: Supervisor, check: str, timeout: float = 100.0) -> tuple[ExitStatus, list[Event]]:
    events: list[Event] = []
    return supervisor.run(AvailabilityJob(backends=(check,)), timeout, events.append), events


def answer(supervisor: Supervisor, check: str) -> str:
    status, (event,) = ask(supervisor, check)
    assert status == ExitStatus(0, Done())
    assert isinstance(event, Availability)
    return str(event.reason)


def server_of(supervisor: Supervisor) -> psutil.Process:
    return psutil.Process(int(answer(supervisor, "pid").split()[1]))


def test_a_job_answers_and_ends(supervisor: Supervisor) -> None:
    status, events = ask(supervisor, "fresh")
    assert status == ExitStatus(0, Done())
    assert events == [Availability("fresh", "0")]


def test_every_worker_is_fresh_and_leads_its_session(supervisor: Supervisor) -> None:
    assert [answer(supervisor, "fresh") for _ in range(2)] == ["0", "0"]
    pid, server, session, threads = answer(supervisor, "pid").split()
    assert pid == session != server
    assert threads == "1"


def test_the_server_runs_no_thread_of_its_own(supervisor: Supervisor) -> None:
    assert server_of(supervisor).num_threads() == 1


@pytest.mark.parametrize(
    ("check", "code", "words"),
    [
        ("quits", 3, "exited with code 3"),
        ("dies", -9, "was killed by signal 9 (SIGKILL)"),
        ("regicide", -9, "was killed by signal 9 (SIGKILL)"),
    ],
)
def test_an_exit_without_a_result_is_described(
    supervisor: Supervisor, check: str, code: int, words: str
) -> None:
    status, _ = ask(supervisor, check)
    assert status == ExitStatus(code, None)
    assert status.description == words
    assert answer(supervisor, "fresh") == "0"  # and the next job finds a server


def test_a_signal_without_a_name_has_its_number() -> None:
    assert ExitStatus(-40).description == "was killed by signal 40"


@pytest.mark.parametrize("check", ["sleeps", "stops"])
def test_a_worker_whose_time_is_up_is_killed(supervisor: Supervisor, check: str) -> None:
    began = time.monotonic()
    status, _ = ask(supervisor, check, timeout=0.5)
    assert status.code is None
    assert status.description == "was killed when its time was up"
    assert 0.5 <= time.monotonic() - began < 9  # far from the ten seconds that force takes
    assert answer(supervisor, "fresh") == "0"


def test_the_waiting_parent_uses_no_cpu(supervisor: Supervisor) -> None:
    before = os.times()
    ask(supervisor, "sleeps", timeout=2.0)
    after = os.times()
    assert after.user + after.system - before.user - before.system < 0.1


def test_children_do_not_outlive_their_worker(supervisor: Supervisor) -> None:
    ask(supervisor, "child")
    assert misbehaving.left_behind() == []


def test_a_worker_has_only_the_descriptors_it_needs(supervisor: Supervisor, log: Path) -> None:
    found = json.loads(answer(supervisor, "descriptors"))
    assert found["0"] == "/dev/null"
    assert found["1"] == found["2"] == str(log)
    others = sorted(target.partition(":")[0] for number, target in found.items() if int(number) > 2)
    assert [target for target in others if target.startswith("pipe")] == ["pipe"]
    assert not [target for target in others if "socket" in target or "eventpoll" in target]
    assert len(others) <= 2  # the pipe, and the data file, whose unlinked name may not be shown


def test_jobs_leave_no_descriptor_open_on_either_side(supervisor: Supervisor) -> None:
    server = server_of(supervisor)
    before = psutil.Process().num_fds(), server.num_fds()
    for check in ("fresh", "quits", "child"):
        ask(supervisor, check)
    ask(supervisor, "sleeps", timeout=0.2)
    assert (psutil.Process().num_fds(), server.num_fds()) == before


def test_a_job_larger_than_any_buffer_arrives(supervisor: Supervisor) -> None:
    long = "x" * 5_000_000
    status = supervisor.run(FitJob(networks={long: (1, 8, 8)}, num_classes=10), 100.0)
    assert status == ExitStatus(0, Done())


def test_only_a_survey_can_write_the_data_file(supervisor: Supervisor) -> None:
    for _ in range(2):  # the second writes another file
        assert survey(supervisor, "zeros", None).train_images == 9
        written = os.fstat(supervisor.data).st_size
        ask(supervisor, "writes-to-data")
        assert os.pread(supervisor.data, 10_000, 0) == bytes(written)


def test_a_line_without_end_is_dropped_and_not_kept_in_memory(supervisor: Supervisor) -> None:
    before = psutil.Process().memory_info().rss
    status, events = ask(supervisor, "shouts")
    assert status == ExitStatus(0, Done())
    assert [type(event) for event in events] == [Availability]
    assert psutil.Process().memory_info().rss - before < 300e6


def test_workers_have_the_thread_variables_of_libraries(supervisor: Supervisor) -> None:
    before = dict(os.environ)
    variables = json.loads(answer(supervisor, "echo"))
    assert os.environ == before  # nothing was changed behind the caller's back
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        assert variables[name] == "1"


def test_denormals_are_flushed_in_the_pools_threads_too(supervisor: Supervisor) -> None:
    import torch

    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormal numbers")
    assert int((torch.full((1_000_000,), 1e-30) * 1e-10).count_nonzero()) == 1_000_000
    assert answer(supervisor, "denormals") == "0"


def test_a_server_that_cannot_start_raises_one_sentence(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConvbenchError, match=r"starts workers exited with code 1: it does not say why$"):
        Supervisor(log)


def test_the_error_of_a_server_that_does_not_start_has_the_last_line_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with the reason is of no use where its directory is gone by then."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'MemoryError: no room' >&2\necho >&2\nexit 1\n")
    python.chmod(0o755)
    log = tmp_path / "log"
    log.write_text("from before\n")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ConvbenchError, match=r"starts workers exited with code 1: MemoryError: no room$"):
        Supervisor(log)


def test_leaving_the_context_kills_a_running_worker(supervisor: Supervisor, log: Path) -> None:
    """An interrupt: the context is left while a worker runs."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Supervisor(log) as other:
            server = server_of(other)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                ask(other, "sleeps")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not server.is_running()
    assert not [child for child in psutil.Process().children() if child.pid == server.pid]


def test_no_process_outlives_a_killed_parent(log: Path, tmp_path: Path) -> None:
    site = misbehaving.install(tmp_path / "site")
    (site / "misbehaving_plugins.py").write_text(dedent(PLUGIN).replace("SLEEP", misbehaving.SLEEP))
    script = f"""
        from pathlib import Path
        from convbench.suites.processes.protocol import AvailabilityJob
        from convbench.suites.processes.supervisor import Supervisor
        with Supervisor(Path({str(log)!r})) as supervisor:
            supervisor.run(AvailabilityJob(backends=("child", "sleeps")), 1000)
    """
    parent = subprocess.Popen([sys.executable, "-c", dedent(script)], env=python_environment(site))
    try:
        wait_until(lambda: len(misbehaving.left_behind()) == 2)
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) == 4  # server, worker, and two children of its own
    finally:
        parent.kill()
        parent.wait()
    assert wait_until(lambda: not any(map(alive, family)), seconds=10) < 5


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_lines_that_are_not_json_objects_are_dropped() -> None:
    read, write = os.pipe()
    try:
        lines = Lines(read)
        os.write(write, b'\xff\xfe\n{"a": 1}\n[1]\n' + b"[" * 20_000 + b'\n3\nnull\n\n{"b": ')
        assert lines.read()
        assert lines.take() == [{"a": 1}]
        os.write(write, b"2}\n")
        assert lines.read()
        assert lines.take() == [{"b": 2}]
    finally:
        os.close(write)
        assert not lines.read()
        os.close(read)
