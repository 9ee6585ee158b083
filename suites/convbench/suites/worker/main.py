"""What happens inside a worker process: one job, its events, and the status it ends with.

All plugin code of a run is executed here. Events are JSON lines on a descriptor of their own; what plugins
print goes to the run's log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from convbench.registry import ConvbenchError, Unsupported, UsageError
from convbench.registry.discovery.plugins import describe
from convbench.registry.errors import out_of_memory
from convbench.suites.worker.jobs import Send, time_combination, train_combination, verify_combination
from convbench.suites.worker.originals import originals
from convbench.suites.worker.probe_jobs import availability, conform, fit, peaks, survey
from convbench.suites.worker.setup import Job


def work(job: Job, results: int, data: int) -> int:
    """Do one job. The last event has a `status`; any exception becomes one.

    Args:
        job: `kind`, and what that kind of job needs, see the functions of JOBS; and the `token` by which
            events are known to be ours.
        results: where events are written.
        data: the file the dataset is kept in.

    Returns:
        the process's exit code, 0 whenever the last event was written.
    """
    lock = threading.RLock()
    token = job["token"]
    job = {name: value for name, value in job.items() if name != "token"}

    def send(event: dict[str, Any]) -> None:
        # the first line end cuts off whatever a plugin has written here
        line = b"\n" + json.dumps({**event, "token": token}).encode() + b"\n"
        with lock:
            while line:
                line = line[os.write(results, line) :]

    _forward_notes(send)
    try:
        ending = JOBS[job["kind"]](job, send, data)
    except BaseException as error:  # noqa: BLE001 - the worker's edge: whatever it is becomes a row
        _log_traceback()
        ending = {
            "status": _status(error),
            "error": _explain(error),
            "ours": isinstance(error, ConvbenchError),
            "usage": isinstance(error, UsageError),
        }
    send({"event": "end", **ending})
    return 0


JOBS: Mapping[str, Callable[[Job, Send, int], dict[str, Any]]] = {
    "survey": survey,
    "availability": availability,
    "fit": fit,
    "peaks": peaks,
    "verify": verify_combination,
    "time": time_combination,
    "train": train_combination,
    "conform": conform,
}

originals()  # of a process that has loaded no plugin


def _log_traceback() -> None:
    try:
        traceback.print_exc()
    except OSError:  # the log cannot be written; the row still can
        pass


def _status(error: BaseException) -> str:
    if isinstance(error, Unsupported):
        return "unsupported"
    return "oom" if out_of_memory(error) else "error"


def _explain(error: BaseException) -> str:
    return str(error) if isinstance(error, ConvbenchError) else describe(error)


class _Notes(logging.Handler):
    def __init__(self, send: Send) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send({"event": "note", "text": record.getMessage()})


def _forward_notes(send: Send) -> None:
    """Warnings of convbench and of plugins' loggers below its name reach the user; the rest the log."""
    logging.basicConfig(stream=sys.stderr)
    logging.captureWarnings(True)
    logging.getLogger("convbench").addHandler(_Notes(send))
