"""Start a worker process for each job from a fork server, read its events, and kill it after a timeout."""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from textwrap import shorten
from types import TracebackType
from typing import Any, Protocol

from convbench.registry import ConvbenchError
from convbench.suites.processes.protocol import (
    Event,
    Job,
    Lines,
    Result,
    SurveyJob,
    dumps,
    encode,
    event_of,
)
from convbench.suites.processes.versions import python_environment

LONGEST_WAIT = 1.0  # seconds at a time: an interrupt that comes just before a wait does not end it
LONGEST_LOG = 1024 * 1024  # bytes of what one worker printed that are kept
LONGEST_REASON = 300  # characters
# what OpenMP, numpy's BLAS and numba read when they are loaded
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class ExitStatus:
    """How a worker ended: its exit code (negative for a signal), None where its time was up; and its result."""

    code: int | None
    result: Result | None = None

    @property
    def description(self) -> str:
        """In words."""
        if self.code is None:
            return "was killed when its time was up"
        if self.code < 0:
            # signals for real time have no name
            names = {each.value: f" ({each.name})" for each in signal.Signals}
            return f"was killed by signal {-self.code}{names.get(-self.code, '')}"
        return f"exited with code {self.code}"


class JobRunner(Protocol):
    """Runs jobs in worker processes: a supervisor, or one on another machine."""

    def run(self, job: Job, timeout: float, on_event: Callable[[Event], None] = ...) -> ExitStatus:
        """As `Supervisor.run` does."""

    def now(self) -> float:
        """The clock of the machine that runs them, in seconds; within `on_event`, when the event came there."""


class Supervisor:
    """Starts workers from a fork server, one after the other, and outlives whatever they do.

    Use it as a context manager: leaving it kills every process that is left.
    """

    def __init__(
        self,
        log: Path,
        threads: int | None = None,
        first: Path | None = None,
        *,
        preload: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the fork server.

        Args:
            log: the file that what workers print is appended to.
            threads: how many threads libraries other than torch may start in a worker; torch's own number is
                part of a job.
            first: a directory in which workers look for packages before all others.
            preload: import torch before the first job. Without it the server starts within 0.2 s, and takes jobs
                that need no torch.
            environment: the variables of workers; those of this process when None.

        Raises:
            ConvbenchError: it does not start; the log has the reason.
        """
        self._log = log.open("a+b", buffering=0)
        self._threads, self._preload = threads, preload
        self._environment = python_environment(first) if environment is None else dict(environment)
        self.data = _data_file()
        self._jobs = 0
        try:
            self._start()
        except BaseException:
            self._release()
            raise

    def run(
        self,
        job: Job,
        timeout: float,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> ExitStatus:
        """Run one job in a worker of its own and wait for it, asleep.

        Args:
            job: what the worker does. Only a `SurveyJob` can write the data file that all workers read.
            timeout: seconds until the worker is killed.
            on_event: called with every event the worker sends, and with `Dropped` for whatever else comes through
                its pipe, for a plugin may write to any descriptor.

        Raises:
            ConvbenchError: no worker can be started.
        """
        self._jobs += 1
        token = os.urandom(16).hex()  # only convbench's own code in the worker knows it
        message = dumps({"number": self._jobs, "token": token, "job": encode(job)})
        printed = os.fstat(self._log.fileno()).st_size
        read, write = os.pipe()
        try:
            if isinstance(job, SurveyJob):
                os.close(self.data)
                self.data = _data_file()
            self._hand_over(message, [write, self._log.fileno(), self.data])
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        try:
            results: list[Result] = []

            def receive(message: dict[str, Any]) -> None:
                event = event_of(message, token)
                if isinstance(event, Result):
                    results.append(event)
                else:
                    on_event(event)

            code = self._follow(read, time.monotonic() + timeout, receive)
            return ExitStatus(code, results[-1] if results else None)
        finally:
            os.close(read)
            if isinstance(job, SurveyJob):
                _seal(self.data)
            self._shorten_log(printed)

    def now(self) -> float:
        """The clock of this process, in seconds."""
        return time.monotonic()

    def close(self) -> None:
        """Kill what is left and release everything."""
        try:
            self._stop()
        finally:
            self._release()

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def _hand_over(self, message: bytes, descriptors: list[int]) -> None:
        """Send a job to the server; to a new one if a worker has killed the old."""
        for attempt in range(2):
            if attempt or self._server.poll() is not None:
                self._stop()
                self._start()
            try:
                sent = socket.send_fds(self._control, [message], descriptors)
                self._control.sendall(message[sent:])  # a job larger than the socket's buffer
                return
            except OSError as error:
                failure = error
        raise ConvbenchError(f"the process that starts workers is gone: {failure.strerror}") from failure

    def _start(self) -> None:
        self._control, other = socket.socketpair()
        began = os.fstat(self._log.fileno()).st_size
        environment = dict(self._environment)
        if self._threads is not None:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(self._threads))
            environment.setdefault("OMP_PROC_BIND", "true")  # a thread that wanders between cores is slower
        command = (
            f"from convbench.suites.processes.forkserver import main; main({other.fileno()}, {self._preload})"
        )
        with other:
            self._server = subprocess.Popen(
                [sys.executable, "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(other.fileno(),),
                env=environment,
                start_new_session=True,
            )
        self._lines = Lines(self._control.fileno())
        try:
            ready = self._lines.wait()
        except BaseException:  # interrupted: it would go on importing for a while
            self._server.kill()
            self._stop()
            raise
        if not ready:
            self._control.close()
            ended = ExitStatus(self._server.wait()).description
            raise ConvbenchError(f"the process that starts workers {ended}: {self._last_line(began)}")

    def _last_line(self, start: int) -> str:
        """The last line of what was printed from there on, which says of most failures why."""
        printed = os.pread(self._log.fileno(), LONGEST_LOG, start).decode(errors="replace")
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        return shorten(lines[-1], LONGEST_REASON) if lines else "it does not say why"

    def _stop(self) -> None:
        self._control.close()  # the server kills its workers and exits when it sees this
        try:
            self._server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _release(self) -> None:
        self._log.close()
        os.close(self.data)

    def _follow(self, read: int, deadline: float, receive: Callable[[dict[str, Any]], None]) -> int | None:
        """Hand on what a worker sends until it has ended; returns its exit code, None where it was killed."""
        events = Lines(read)
        timed_out = False
        selector = selectors.DefaultSelector()
        selector.register(read, selectors.EVENT_READ)
        selector.register(self._control, selectors.EVENT_READ)
        try:
            while True:
                ready = selector.select(min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT))
                if time.monotonic() >= deadline:
                    if timed_out:  # the kill was asked for and never reported
                        self._server.kill()
                    timed_out, deadline = True, time.monotonic() + 10.0
                    self._send({"kill": self._jobs})
                for key, _ in ready:
                    if key.fileobj == read:
                        if not events.read():
                            selector.unregister(read)
                        for message in events.take():
                            receive(message)
                        continue
                    alive = self._lines.read()
                    for report in self._lines.take():
                        if report.get("number") == self._jobs and "ended" in report:
                            self._drain(events, receive)
                            return None if timed_out else int(report["ended"])
                    if not alive:  # somebody killed the server, and its workers with it
                        code = self._server.wait()
                        return None if timed_out else code
        finally:
            selector.close()

    def _shorten_log(self, start: int) -> None:
        """Keep the beginning and the end of what the last worker printed, where it was very much."""
        end = os.fstat(self._log.fileno()).st_size
        dropped = end - start - LONGEST_LOG
        if dropped <= 0:
            return
        with suppress(OSError), open(self._log.name, "r+b") as file:  # somebody may have deleted it
            file.seek(end - LONGEST_LOG // 2)
            last = file.read()
            file.seek(start + LONGEST_LOG // 2)
            file.write(b"\n[%d bytes were dropped here]\n" % dropped + last)
            file.truncate()

    def _drain(self, events: Lines, receive: Callable[[dict[str, Any]], None]) -> None:
        """Read what is still in the pipe; a grandchild may hold its other end open, so do not wait."""
        os.set_blocking(events.descriptor, False)
        for _ in range(16):  # more than a pipe can hold
            if not events.read():
                break
        for message in events.take():
            receive(message)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._control.sendall(dumps(message))
        except OSError:
            pass  # the server is gone, which the caller is about to read


def _data_file() -> int:
    """A descriptor of a new file without a name: it goes with its last user, even after kill -9."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("convbench-data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with TemporaryFile() as file:
        return os.dup(file.fileno())


def _seal(descriptor: int) -> None:
    """Let nobody write into the file any more, however it is opened; where the system cannot, nothing is done."""
    if hasattr(fcntl, "F_ADD_SEALS"):
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        )
