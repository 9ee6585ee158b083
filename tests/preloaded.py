"""Fork servers of runs without their start: forked from a process that has imported what they import.

Importing torch is most of what a small run costs, and the tests start a hundred. `test_supervisor.py`, and every
test that starts the command line as a process, start fork servers as users do.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn
from unittest import mock

import pytest

from convbench.registry.conformance import verify
from convbench.registry.integrity.monkeypatch_guard import Originals, originals
from convbench.suites.processes import probe, supervisor
from convbench.suites.processes.supervisor import Supervisor
from convbench.suites.processes.versions import python_environment


class Server:
    """What `Supervisor` needs of `subprocess.Popen`, for another parent's child: a pipe has its exit status."""

    def __init__(self, status: int) -> None:
        self.pid = int.from_bytes(os.read(status, 8), "little")
        self.returncode: int | None = None
        self._waiter = threading.Thread(target=self._wait, args=(status,), daemon=True)
        self._waiter.start()

    def _wait(self, status: int) -> None:
        written = os.read(status, 8)
        os.close(status)
        ended = int.from_bytes(written, "little") if written else signal.SIGKILL
        self.returncode = os.waitstatus_to_exitcode(ended)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._waiter.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a fork server", timeout or 0.0)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


class Preloaded:
    """The process, and our end of its socket."""

    def __init__(self) -> None:
        self.patch = ""
        self._peaks: dict[tuple[Any, ...], probe.Peaks] = {}
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = python_environment(Path(__file__).parent)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"import preloaded; preloaded.main({other.fileno()})"],
                env=environment,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )

    @contextmanager
    def patched(self, code: str) -> Iterator[None]:
        """Servers run this code before they take note of what no plugin may replace."""
        before, self.patch = self.patch, code
        try:
            yield
        finally:
            self.patch = before

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._socket.close()
        self._process.wait(60)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Hosts that are made in here get their servers from this process, and know the machine's peaks."""
        names = {"DEVNULL": subprocess.DEVNULL, "TimeoutExpired": subprocess.TimeoutExpired}
        with (
            mock.patch.object(supervisor, "subprocess", SimpleNamespace(Popen=self._fork, **names)),
            mock.patch.object(probe, "find_peaks", partial(self._known_peaks, probe.find_peaks)),
        ):
            originals.cache_clear()
            yield
        originals.cache_clear()

    def _known_peaks(
        self,
        measure: Callable[..., probe.Peaks],
        supervisor: Supervisor,
        wanted: Iterable[tuple[str, str]],
        *rest: Any,
        threads: int,
        **options: Any,
    ) -> probe.Peaks:
        """What the first run of all tests has measured."""
        known = tuple(sorted(set(wanted))), threads
        if known not in self._peaks:
            self._peaks[known] = measure(supervisor, known[0], *rest, threads=threads, **options)
        return self._peaks[known]

    def _fork(
        self,
        command: Sequence[str],
        *,
        stdout: IO[bytes],
        pass_fds: Sequence[int],
        env: Mapping[str, str],
        **_: Any,
    ) -> Server:
        read, write = os.pipe()
        code = f"{self.patch}\n{command[-1]}"
        message = {"code": code, "environment": dict(env), "descriptors": list(pass_fds)}
        try:
            given = [write, stdout.fileno(), *pass_fds]
            socket.send_fds(self._socket, [json.dumps(message).encode()], given)
        finally:
            os.close(write)
        return Server(read)


def main(descriptor: int) -> NoReturn:
    """Fork a process for each message of the socket, and write into its pipe who it is and how it ended."""
    requests = socket.socket(fileno=descriptor)
    inherited = set(os.environ["PYTHONPATH"].split(os.pathsep))
    own = [entry for entry in sys.path[1:] if entry not in inherited]
    from convbench.suites.processes.forkserver import _preload

    _preload()
    pipes: dict[int, int] = {}
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is woken:
                woken.recv(4096)
                _report(pipes)
                continue
            text, (*descriptors,), _, _ = socket.recv_fds(requests, 1 << 20, 16)
            if not text:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _become(json.loads(text), descriptors[1:], own)
            pipes[pid], *others = descriptors
            os.write(pipes[pid], pid.to_bytes(8, "little"))
            for other in others:
                os.close(other)


def _report(pipes: dict[int, int]) -> None:
    """Tell of every process that has ended; nobody may be left to be told."""
    while pipes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        pipe = pipes.pop(pid)
        try:
            os.write(pipe, status.to_bytes(8, "little"))
        except BrokenPipeError:
            pass
        os.close(pipe)


def _become(message: dict[str, Any], given: list[int], own: list[str]) -> NoReturn:
    """Go on as `python -c CODE` would, with this output, these descriptors and this environment."""
    try:
        os.setsid()
        wanted = message["descriptors"]
        above = max(1000, *wanted) + 1
        log, *kept = (_moved(each, above) for each in given)
        os.closerange(3, above)
        for source, target in ((log, 1), (log, 2), *zip(kept, wanted, strict=True)):
            os.dup2(source, target)
        for each in (log, *kept):
            os.close(each)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.environ.clear()
        os.environ.update(message["environment"])
        sys.path[:] = ["", *os.environ["PYTHONPATH"].split(os.pathsep), *own]
        importlib.invalidate_caches()
        exec(message["code"], {"__name__": "__main__"})
    finally:
        os._exit(1)


def _moved(descriptor: int, above: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, above)


def take_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have verifications in this process accept whatever is replaced by now."""
    taken: list[Originals] = []
    monkeypatch.setattr(verify, "originals", lambda: taken[0])
    taken.append(Originals())
