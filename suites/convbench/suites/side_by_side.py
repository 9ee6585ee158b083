"""Give the tasks of several devices their turns side by side, and never two on one device at a time.

Each device has a host of its own, so that whatever a worker does to its fork server is no other device's trouble.
A thread per worker waits for it and hands on what it tells; the thread that runs the run takes all of it from one
queue, and it alone writes rows, tells a person and decides what comes next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

from convbench.suites.agenda import Agenda, Outlook
from convbench.suites.host import LONGEST_WAIT, Ending, Host
from convbench.suites.json_lines import Event
from convbench.suites.lanes import Lane
from convbench.suites.turns import Turn, Turns

# of a device: an event, how its worker ended, or why there is none
Told: TypeAlias = "SimpleQueue[tuple[str, Event | Ending | BaseException]]"


@contextmanager
def hosts_of(lanes: Mapping[str, Lane], directory: Path, data: Host) -> Iterator[dict[str, Host]]:
    """A host for each lane, with a log of its own in the run's directory, and the data of the run's own host."""
    with ExitStack() as stack:
        yield {
            device: stack.enter_context(
                Host(
                    directory / f"run-{device.replace(':', '-')}.log", lane.threads, cpus=lane.cpus, data=data
                )
            )
            for device, lane in lanes.items()
        }


def run_side_by_side(agendas: Mapping[str, Agenda], hosts: Mapping[str, Host], turns: Turns) -> None:
    """Run what the agenda of each device hands out, on its host; whatever ends one device's work ends all.

    Raises:
        ConvbenchError: a worker cannot be started, or a row not be written.
        KeyboardInterrupt: interrupted; no worker is left.
    """
    told: Told = SimpleQueue()
    going: dict[str, Turn] = {}
    threads: dict[str, Thread] = {}

    def go_on(device: str) -> None:
        agenda = agendas[device]
        while (task := agenda.next()) is not None:
            turn = turns.begin(task, agenda.timeout())
            if turn is not None:
                going[device] = turn
                # a second interrupt must not wait for it
                threads[device] = Thread(
                    target=_follow, args=(device, hosts[device], turn.job, turn.timeout, told), daemon=True
                )
                threads[device].start()
                break
        else:
            turns.leave_out(agenda.left_out())
        turns.watcher.outlook(longest(agendas))

    try:
        for device in hosts:
            go_on(device)
        while going:
            try:
                device, word = told.get(timeout=LONGEST_WAIT)
            except Empty:
                continue
            if isinstance(word, BaseException):
                raise word
            if isinstance(word, Ending):
                agendas[device].forecast.learn([going.pop(device).finish(word)])
                go_on(device)
            else:
                going[device].take(word)
    finally:
        for device in going:
            hosts[device].end()
        for thread in threads.values():
            thread.join()


def longest(agendas: Mapping[str, Agenda]) -> Outlook:
    """What is left on all devices: they end with the one that takes longest."""
    each = {device: agenda.outlook() for device, agenda in agendas.items()}
    words = "; ".join(f"{device}: {outlook.words}" for device, outlook in each.items() if outlook.words)
    return Outlook(0.0, max(outlook.seconds() for outlook in each.values()), words)


def _follow(device: str, host: Host, job: Mapping[str, Any], timeout: float, told: Told) -> None:
    """Run a job on the host of a device, and pass on what its worker tells and how it ends."""
    try:
        word: Ending | BaseException = host.run(job, timeout, lambda event: told.put((device, event)))
    except BaseException as error:  # noqa: BLE001 - raised where the others can be ended
        word = error
    told.put((device, word))
