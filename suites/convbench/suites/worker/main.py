"""What happens inside a worker process: one job, its events, and its result.

All plugin code of a run is executed here. Events are JSON lines on a descriptor of their own; what plugins
print goes to the run's log.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from convbench.registry import ConvbenchError, Unsupported, UsageError
from convbench.registry.discovery.plugins import describe
from convbench.registry.errors import out_of_memory
from convbench.registry.integrity.fingerprint import Change
from convbench.results.schema import Status
from convbench.suites.processes.protocol import (
    AvailabilityJob,
    CombinationJob,
    ConformJob,
    Event,
    Failed,
    FitJob,
    Job,
    Note,
    PeaksJob,
    PluginsJob,
    Result,
    Send,
    SurveyJob,
    dumps,
    encode,
)

# The function of each kind of job. It is imported when it is needed: not every server has imported torch.
FUNCTIONS: Mapping[type[Job], tuple[str, str]] = {
    SurveyJob: ("probe_jobs", "survey"),
    AvailabilityJob: ("availability", "availability"),
    FitJob: ("probe_jobs", "fit"),
    PluginsJob: ("probe_jobs", "load_plugins"),
    PeaksJob: ("probe_jobs", "peaks"),
    CombinationJob: ("ranks", "run_combination"),
    ConformJob: ("conform", "conform"),
}


Function = Callable[[Any, Send, int], Result]
MOST_CHANGES = 3  # that a row names


def work(job: Job, token: str, results: int, data: int) -> int:
    """Do one job. The last message is its result; any exception becomes one.

    Args:
        job: what to do.
        token: by which the parent knows our messages.
        results: where messages are written.
        data: the file the dataset is kept in.

    Returns:
        the process's exit code, 0 whenever the result was written.
    """
    send = sender(token, results)
    _forward_notes(send)
    send(outcome(_function(type(job)), job, send, data))
    return 0


def sender(token: str, descriptor: int) -> Send:
    """What writes messages there, each with the token."""
    lock = threading.RLock()

    def send(message: Event | Result) -> None:
        # the first line end cuts off whatever a plugin has written here
        line = b"\n" + dumps({**encode(message), "token": token})
        with lock:
            while line:
                line = line[os.write(descriptor, line) :]

    return send


def outcome(function: Function, job: Job, send: Send, data: int) -> Result:
    """Do a job; any exception becomes its result, and so do changes of what no plugin may replace."""
    # in this frame, whose code no plugin can replace: the job's own checks can be replaced
    changes = _originals() if isinstance(job, (CombinationJob, ConformJob)) else list
    try:
        result = function(job, send, data)
    except BaseException as error:  # noqa: BLE001 - the worker's edge: whatever it is becomes a row
        _log_traceback()
        ours = isinstance(error, ConvbenchError)
        text = str(error) if ours else describe(error)
        result = Failed(_status(error), text, ours, isinstance(error, UsageError))
    if found := changes():
        for change in found:  # in what the result is sent with, too
            change.undo()
        result = Failed("incorrect", "; ".join(change.text for change in found[:MOST_CHANGES]))
    return result


def load_jobs() -> None:
    """Import the functions of all jobs, and note what no plugin may replace: no plugin is loaded yet."""
    for kind in FUNCTIONS:
        _function(kind)
    from convbench.registry.integrity.monkeypatch_guard import originals

    originals.cache_clear()  # fewer modules were loaded then
    originals()


def _originals() -> Callable[[], list[Change]]:
    """What tells the changes of all that no plugin may replace."""
    from convbench.registry.integrity.monkeypatch_guard import originals

    return originals().changes


def _function(kind: type[Job]) -> Function:
    module, name = FUNCTIONS[kind]
    function: Function = getattr(import_module(f"convbench.suites.worker.{module}"), name)
    return function


def _log_traceback() -> None:
    try:
        traceback.print_exc()
    except OSError:  # the log cannot be written; the row still can
        pass


def _status(error: BaseException) -> Status:
    if isinstance(error, Unsupported):
        return "unsupported"
    return "oom" if out_of_memory(error) else "error"


class _Notes(logging.Handler):
    def __init__(self, send: Send) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(Note(record.getMessage()))


def _forward_notes(send: Send) -> None:
    """Warnings of convbench and of plugins' loggers below its name reach the user; the rest the log."""
    logging.basicConfig(stream=sys.stderr)
    logging.captureWarnings(True)
    logging.getLogger("convbench").addHandler(_Notes(send))
