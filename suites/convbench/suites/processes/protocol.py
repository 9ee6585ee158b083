"""What workers and their server send: JSON objects, one a line."""

from __future__ import annotations

import json
import os
from typing import Any

Event = dict[str, Any]
LONGEST_LINE = 64 * 1024 * 1024  # bytes that may be sent without a line end


class Lines:
    """JSON objects, one a line, from a descriptor; a line that is none is dropped."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._whole: list[bytes] = []
        self._begun: list[bytes] = []  # pieces of a line without its end
        self._length = 0

    def read(self) -> bool:
        """Take in what is there; False at the end of the file, or where nothing is there to read."""
        try:
            chunk = os.read(self.descriptor, 1 << 20)
        except (BlockingIOError, ConnectionError):
            return False
        first, *more = chunk.split(b"\n")
        self._begun.append(first)
        self._length += len(first)
        if self._length > LONGEST_LINE:  # given up: what is left of it is no JSON
            self._begun, self._length = [], 0
        for piece in more:
            self._whole.append(b"".join(self._begun))
            self._begun, self._length = [piece], len(piece)
        return bool(chunk)

    def take(self) -> list[Event]:
        """The whole lines so far."""
        lines, self._whole = self._whole, []
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    def wait(self) -> bool:
        """Block until a first line is there; False if the other side closes without one."""
        while not self.take():
            if not self.read():
                return False
        return True
