"""Ask backends whether they can run here, without running their checks in this process.

Light enough for `convbench list`: a run asks its workers instead (`convbench.suites.processes.survey`). A check
that hangs, crashes or prints costs a sentence about its own backend.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from tempfile import TemporaryFile

from convbench.registry import discover
from convbench.registry.discovery.plugins import describe

SECONDS = 10.0  # a check may import a compiler


def ask_availability(names: Sequence[str], seconds: float = SECONDS) -> dict[str, str | None]:
    """Why each backend cannot run here, None where it can."""
    answers: dict[str, str | None] = {}
    while waiting := [name for name in names if name not in answers]:
        found, ending = _ask(waiting, seconds)
        answers |= found
        silent = next((name for name in waiting if name not in answers), None)
        if silent is not None:  # the others are asked by another process
            answers[silent] = f"its check for availability failed: {ending}"
    return answers


def _ask(names: Sequence[str], seconds: float) -> tuple[dict[str, str | None], str]:
    """The answers of one process, which may be some of the names only, and how it ended."""
    with TemporaryFile() as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from convbench.suites.processes.availability import answer; answer()",
                str(file.fileno()),
                *names,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(file.fileno(),),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            ending = (
                f"its process was killed by signal {-code}"
                if code < 0
                else f"its process exited with code {code}"
            )
        except subprocess.TimeoutExpired:
            ending = f"no answer within {seconds:g} s"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # what it has started as well
            except ProcessLookupError:
                pass
            process.wait()
        file.seek(0)
        lines = file.read().splitlines()
    return dict(_parsed(line) for line in lines if _is_answer(line, names)), ending


def _is_answer(line: bytes, names: Sequence[str]) -> bool:
    """Whether a line is one of ours: a check may write to any descriptor."""
    try:
        name, reason = json.loads(line)
    except (ValueError, TypeError):
        return False
    return name in names and isinstance(reason, str | None)


def _parsed(line: bytes) -> tuple[str, str | None]:
    name, reason = json.loads(line)
    return name, reason


def answer() -> None:
    """In the process that is asked: a JSON line [name, reason] for each name, into the file of that descriptor."""
    descriptor, *names = sys.argv[1:]
    registry = discover()
    for name in names:
        try:
            reason = registry.backend(name).unavailable()
        except Exception as error:  # noqa: BLE001 - a plugin's code: anything can come out of it
            reason = f"its check for availability failed: {describe(error)}"
        os.write(
            int(descriptor), json.dumps([name, None if reason is None else str(reason)]).encode() + b"\n"
        )
