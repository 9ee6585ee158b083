"""A process with torch imported, from which worker processes are forked in milliseconds.

It runs nobody else's plugin code and starts no threads, so that a fork of it is as good as a fresh process. Over a
socket it takes jobs, one JSON line each with three file descriptors (results, log, data), and reports how each
worker ended. When the socket closes, because the run is over or was killed, it kills whatever is left.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

from convbench.suites.machine.load import first_allowed_cpus
from convbench.suites.processes.protocol import SurveyJob, decode_job, dumps

LONGEST_FILE = 2**30  # bytes a worker may write into one file: the log is one
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, <sys/prctl.h>


def main(descriptor: int, preload: bool = True) -> NoReturn:
    """Serve the socket of that descriptor until it closes; with `preload`, torch is imported before."""
    control = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's to handle
    # what a dead worker leaves behind becomes ours to kill
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # while the imports keep us from looking at the socket
    if preload:
        first_allowed_cpus()
        _preload()
    _prctl(PR_SET_PDEATHSIG, 0)  # from here on we have something to clean up first
    server = _Server(control)
    try:
        control.sendall(b'{"ready": true}\n')
        server.serve()
    except ConnectionError:  # the run was killed while we told it something
        pass
    finally:
        server.kill_all()
        os._exit(0)


class _Server:
    """The loop that forks workers and reports their ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._workers: dict[int, int] = {}  # pid -> job number
        self._pending, self._descriptors = b"", list[int]()
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Take jobs and report ends, until the socket closes."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._woken.recv(4096)
                    self._reap()
                elif not self._receive():
                    return

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for pid in self._workers:
            _kill_group(pid)
        _kill_orphans()

    def _receive(self) -> bool:
        """Do what the run asks for; False once it has gone."""
        chunk, received, _, _ = socket.recv_fds(self._control, 1 << 16, 64)
        self._descriptors += received
        self._pending += chunk
        while b"\n" in self._pending:
            line, _, self._pending = self._pending.partition(b"\n")
            message = json.loads(line)
            if "kill" in message:
                for pid in [pid for pid, number in self._workers.items() if number == message["kill"]]:
                    _kill_group(pid)
            else:
                self._start(message)
        return bool(chunk)

    def _start(self, message: dict[str, Any]) -> None:
        handed_over, self._descriptors = self._descriptors[:3], self._descriptors[3:]
        pid = os.fork()
        if pid == 0:
            ours = [self._control, self._woken, self._waker]
            self._selector.close()
            _become_worker(message, handed_over, [end.detach() for end in ours])
        self._workers[pid] = message["number"]
        for descriptor in handed_over:
            os.close(descriptor)

    def _reap(self) -> None:
        """Report every worker that has ended, and kill what it left behind."""
        while True:
            try:
                # look only: its number must not be given to somebody else before its group is killed
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            number = self._workers.pop(ended.si_pid, None)
            if number is not None:
                _kill_group(ended.si_pid)
            _, status = os.waitpid(ended.si_pid, 0)
            if number is None:  # an orphan that we adopted
                continue
            if not self._workers:
                _kill_orphans()
            report = {"number": number, "ended": os.waitstatus_to_exitcode(status)}
            self._control.sendall(dumps(report))


def _preload() -> None:
    """Import what every worker needs, without starting a thread pool or touching a GPU."""
    import numpy  # noqa: F401
    import torch

    # the first optimizer imports a good part of torch
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    import torch.utils.flop_counter

    with suppress(ImportError):  # a third of a verification is the import of torch's compiler
        import torch._inductor.compile_fx

    from convbench.registry import discover
    from convbench.suites.worker.main import load_jobs

    load_jobs()
    discover(installed=())  # the modules of our own plugins
    gc.freeze()  # no worker's collector looks through all of it again


def _become_worker(message: dict[str, Any], handed_over: list[int], inherited: list[int]) -> NoReturn:
    """Turn the forked child into a worker: its own session, limits, and output into the run's log."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.setsid()
        server = os.getppid()
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:  # it died just before
            os._exit(code)
        results, log, data = handed_over
        for descriptor in inherited:
            os.close(descriptor)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for spare in (null, log):
            os.close(spare)
        for kept in (results, data):
            os.set_inheritable(kept, False)
        faulthandler.enable()  # a crash leaves its stack in the log
        job = decode_job(message["job"])
        if job.memory_mb is not None:
            # private writable memory; address space would count CUDA's reservations and mapped libraries
            resource.setrlimit(resource.RLIMIT_DATA, (job.memory_mb * 10**6,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if not isinstance(job, SurveyJob):  # which writes the dataset
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)  # the user's own may be lower
            limit = LONGEST_FILE if most == resource.RLIM_INFINITY else min(LONGEST_FILE, most)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        from convbench.suites.worker.main import work

        code = work(job, message["token"], results, data)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # never back into the server's loop


def _kill_group(pid: int) -> None:
    """Kill a worker that was not reaped yet, and whatever is in its session's first group."""
    for kill in (os.kill, os.killpg):  # it leads no group until it has reached setsid
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def _kill_orphans() -> None:
    """Kill every descendant that is left, also those that fled into a session of their own."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # none is left: an orphan would be our child
        return
    import psutil

    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:  # a killed parent's children are adopted by us only then
        alive = 0
        for child in psutil.Process().children(recursive=True):
            try:
                if child.status() != psutil.STATUS_ZOMBIE:
                    alive += 1
                    child.kill()
            except psutil.Error:  # it went by itself
                pass
        if not alive:
            return
        time.sleep(0.01)


def _prctl(option: int, value: int) -> None:
    """Where the system is Linux; elsewhere a killed run may leave a worker until its timeout."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
