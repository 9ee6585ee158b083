"""What several processes that train together bring: how much faster they are than one, of what is possible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from convbench.results.analysis.standings import Line, middle
from convbench.results.schema import Setting


@dataclass(frozen=True)
class Scaling:
    """A line of several processes beside the line of one that it is compared with.

    `kind` is `strong` where both have the same batch, which is divided, and `weak` where each process has the
    batch of the one. Processes share the cores of a machine, so that the same speed is all that is possible there;
    of GPUs each has its own.
    """

    kind: str
    line: Line
    base: Line
    speedup: float

    @property
    def ideal(self) -> int:
        """The speed-up that is possible."""
        return ideal_speedup(self.line.device, self.line.world_size)

    @property
    def efficiency(self) -> float:
        """Which share of it was reached."""
        return self.speedup / self.ideal

    @property
    def allreduce_share(self) -> float | None:
        """Which share of a step is all-reduce that the backward pass does not hide."""
        taken = middle(row.allreduce_ms for row in self.line.timed)
        return None if taken is None or not self.line.step_ms else taken / self.line.step_ms


def ideal_speedup(device: str, processes: int) -> int:
    """How much faster so many processes can be than one, on devices of that kind."""
    return 1 if device == "cpu" else processes


def scaling(lines: Iterable[Line]) -> list[Scaling]:
    """Every line of several processes for which there is a line of one, by batch and then by processes."""
    known = {_setting(line): line for line in lines if line.images_per_second}
    found = []
    for setting, line in known.items():
        size = setting.world_size
        bases = {"strong": setting.batch_size, "weak": setting.batch_size // size}
        for kind, batch_size in bases.items() if size > 1 else ():
            base = known.get(replace(setting, batch_size=batch_size, world_size=1))
            if base is not None:
                speedup = (line.images_per_second or 0.0) / (base.images_per_second or 1.0)
                found.append(Scaling(kind, line, base, speedup))
    return sorted(found, key=lambda each: (each.kind, each.base.batch_size, each.line.world_size))


def _setting(line: Line) -> Setting:
    return Setting(**{each.name: getattr(line, each.name) for each in fields(Setting)})
