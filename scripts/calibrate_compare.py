"""How often `convbench compare` is wrong, and how many processes it needs, from real timings with known truth,
and from simulations.

    python scripts/calibrate_compare.py measure RUN_DIR      # minutes: times the backends of calibration_plugin
    python scripts/calibrate_compare.py keep quiet RUN_DIR ...    # what they measured, into results/reference
    python scripts/calibrate_compare.py table                # what the judge makes of it; refreshes the page

`measure` runs the real runner on four backends: two that are equal, and two whose steps really take 5 % and 10 %
longer. `table` has the judge of `compare` set groups of their processes against each other. It also simulates
comparisons of equals: how often the intervals hold the truth, and how often a gate passes.
"""

from __future__ import annotations

import csv
import math
import random
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "results" / "reference" / "calibration-cpu"
STATES = {"quiet": "A machine that is left alone", "loaded": "A machine that others load several times over"}
PAGE = ROOT / "docs" / "comparing.md"
BASE, TWIN, SLOWER_5, SLOWER_10 = BACKENDS = ("equal-a", "equal-b", "slower-5", "slower-10")
LAYERS = ("layers/lenet-conv1", "layers/lenet-conv2")
PROCESSES = (3, 6, 10, 16, 24, 32)  # on each side of a comparison
COMPARISONS = 1000  # at least, of each kind


@click.group()
def main() -> None:
    """Calibrate `convbench compare`."""


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--rounds", default=16, show_default=True, help="Processes of each backend and layer.")
def measure(run_dir: Path, rounds: int) -> None:
    """Time the four backends, interleaved, on one thread."""
    from convbench.suites import Suite, run
    from convbench.suites.config.suite import Timing
    from convbench.suites.runner.progress import watcher_for

    with TemporaryDirectory() as site:
        info = Path(site, "convbench_calibration-1.dist-info")
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: convbench-calibration\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[convbench]\ncalibration = calibration_plugin\n")
        sys.path[:0] = [site, str(Path(__file__).parent)]
        suite = Suite(
            name="calibration",
            architectures=LAYERS,
            backends=BACKENDS,
            devices=("cpu",),
            batch_sizes=(64,),
            timing=Timing(rounds=rounds, warmup_steps=5, steps=30, threads=1),
        )
        run(suite, out=run_dir, train=False, watcher=watcher_for())


@main.command()
@click.argument("state", type=click.Choice(list(STATES)))
@click.argument("run_dirs", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
def keep(state: str, run_dirs: Sequence[Path]) -> None:
    """Put what the runs measured into results/reference: a line for each round of each layer."""
    lines = ["run,layer,round," + ",".join(f"{backend} ms" for backend in BACKENDS)]
    for number, run_dir in enumerate(run_dirs):
        for layer, rounds in measured(run_dir).items():
            for at, times in rounds.items():
                lines.append(f"{number},{layer},{at},{','.join(f'{time:.6g}' for time in times)}")
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / f"{state}.csv"
    kept.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (KEPT / "environment.json").write_bytes((run_dirs[0] / "environment.json").read_bytes())
    click.echo(f"{kept}: {len(lines) - 1} rounds of {len(BACKENDS)} processes")


@main.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if the page is not up to date.")
def table(check: bool) -> None:
    """Judge the kept timings, and put the table into docs/comparing.md."""
    old = PAGE.read_text(encoding="utf-8")
    new = refreshed(old, "\n\n".join(section(state) for state in STATES))
    new = refreshed(new, simulated(INTERVAL_HEADINGS, interval_row, NOISE, SIMULATED), " (intervals)")
    new = refreshed(new, simulated(GATE_HEADINGS, gate_row, GATE_NOISE, GATE_PROCESSES), " (gate)")
    if check:
        sys.exit(int(old != new))
    PAGE.write_text(new, encoding="utf-8")


Round = Sequence[float]  # the median step times of one process of each of BACKENDS, in milliseconds


def measured(run_dir: Path) -> dict[str, dict[int, Round]]:
    """The whole rounds of a run, by layer."""
    from convbench.results.schema import Row
    from convbench.results.storage.csv_format import read_records

    times: dict[str, dict[int, dict[str, float]]] = {}
    for row in read_records(run_dir / "results.csv", Row):
        if row.kind == "time" and row.status == "ok" and row.step_ms_median is not None:
            found = times.setdefault(row.architecture, {}).setdefault(row.round, {})
            found[row.backend] = row.step_ms_median
    return {
        layer: {
            at: [found[backend] for backend in BACKENDS]
            for at, found in sorted(rounds.items())
            if len(found) == len(BACKENDS)  # the last round of a run that was cut short lacks some
        }
        for layer, rounds in sorted(times.items())
    }


def read_rounds(state: str) -> list[list[Round]]:
    """The kept rounds in their order of time, layer by layer."""
    layers: dict[str, list[Round]] = {}
    with (KEPT / f"{state}.csv").open(encoding="utf-8", newline="") as file:
        for _, layer, _, *times in list(csv.reader(file))[1:]:
            layers.setdefault(layer, []).append([float(time) for time in times])
    return list(layers.values())


def consecutive(rounds: Sequence[Round], count: int) -> Iterator[Sequence[Round]]:
    """Disjoint groups of rounds that followed each other, as one run takes them."""
    for start in range(0, len(rounds) - count + 1, count):
        yield rounds[start : start + count]


def regrouped(rounds: Sequence[Round], count: int, wanted: int, seed: int) -> Iterator[Sequence[Round]]:
    """Groups of rounds, disjoint within each of several random partitions of them, so not independent."""
    shuffler = random.Random(seed)
    made = 0
    while made < wanted and count <= len(rounds):
        for group in consecutive(shuffler.sample(rounds, len(rounds)), count):
            made += 1
            yield group


@dataclass(frozen=True)
class Rates:
    """What the judge said of comparisons whose truth is known, counted."""

    equal: Counter[str]
    slower_5: Counter[str]
    slower_10: Counter[str]

    @property
    def comparisons(self) -> int:
        """Of each kind."""
        return self.equal.total()

    @property
    def false_alarms(self) -> float:
        """The share of comparisons of equals that were called different."""
        return (self.equal["more"] + self.equal["less"]) / self.comparisons


def judged(groups: Iterator[Sequence[Round]]) -> Rates:
    """Judge both equals, and the slowed ones against the first of the equals, for each group of rounds."""
    from convbench.results.analysis.significance import MIN_EFFECT, judge, time_difference

    rates = Rates(Counter(), Counter(), Counter())
    for group in groups:
        base, *others = zip(*group, strict=True)
        for counts, new in zip((rates.equal, rates.slower_5, rates.slower_10), others, strict=True):
            gap = time_difference(dict(enumerate(base)), dict(enumerate(new)))
            (found,) = judge([gap], math.log1p(MIN_EFFECT))
            counts[found.verdict] += 1
    return rates


def rates(layers: Sequence[Sequence[Round]], count: int, wanted: int = COMPARISONS) -> Rates:
    """Rates of comparisons of `count` processes a side, over all layers, regrouped."""
    each = -(-wanted // len(layers))
    return judged(
        group for number, rounds in enumerate(layers) for group in regrouped(rounds, count, each, number)
    )


def in_their_order(layers: Sequence[Sequence[Round]], count: int) -> Rates:
    """Likewise of rounds that followed each other, none of which is used twice."""
    return judged(group for rounds in layers for group in consecutive(rounds, count))


def share(counts: Counter[str], *verdicts: str) -> str:
    """The share of verdicts among all, for a table."""
    return f"{sum(counts[verdict] for verdict in verdicts) / counts.total():.1%}"


def section(state: str) -> str:
    """One state of the machine: how much its processes spread, and the table of rates."""
    layers = read_rounds(state)
    ratios = [[math.log(row[1] / row[0]) for row in rounds] for rounds in layers]
    alone = [statistics.stdev(math.log(row[0]) for row in rounds) for rounds in layers]
    paired = [statistics.stdev(each) / math.sqrt(2) for each in ratios]
    real = [
        " and ".join(f"{statistics.median(row[at] / row[0] for row in rounds):.3f}" for rounds in layers)
        for at in (1, 2, 3)
    ]
    return (
        f"**{STATES[state]}**: {sum(map(len, layers))} rounds. Processes spread by "
        f"{' and '.join(f'{each:.1%}' for each in alone)} (standard deviation, of the two layers), within a round "
        f"by {' and '.join(f'{each:.1%}' for each in paired)}. Median ratios within a round: equal {real[0]}, "
        f"5 % slower {real[1]}, 10 % slower {real[2]}.\n\n{markdown(layers)}"
    )


def markdown(layers: Sequence[Sequence[Round]]) -> str:
    """The table of rates."""
    headings = (
        "processes a side",
        "groups",
        "comparisons of each kind",
        "equal: called different",
        "equal: `same`",
        "5 % slower: `slower`",
        "`unclear`",
        "wrong",
        "10 % slower: `slower`",
        "`unclear`",
        "wrong",
    )
    lines = [f"| {' | '.join(headings)} |", "| ---: | --- |" + " ---: |" * (len(headings) - 2)]
    for count in PROCESSES:
        groups = {"as they came": in_their_order(layers, count), "regrouped": rates(layers, count)}
        for name, found in groups.items():
            cells = [str(count), name, f"{found.comparisons:,}"]
            cells += [share(found.equal, "more", "less"), share(found.equal, "same")]
            for counts in (found.slower_5, found.slower_10):
                cells += [share(counts, "more"), share(counts, "unclear"), share(counts, "less", "same")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def refreshed(page: str, table: str, which: str = "") -> str:
    """The page with its table between the marks replaced."""
    marks = re.compile(
        rf"(<!-- generated: [^>]*calibrate_compare.py table{re.escape(which)} -->\n).*?(\n<!-- end -->)",
        re.DOTALL,
    )
    return marks.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", page)


# Simulated: logarithms of process medians, drawn for both sides of each backend.

NOISE: Mapping[str, Callable[[Generator], NDArray[np.float64]]] = {  # of each backend's processes
    "2 %, alike": lambda random: np.full(BACKENDS_OF_GROUP, 0.02),
    "1 % to 10 %, another for each backend": lambda random: np.exp(
        random.uniform(math.log(0.01), math.log(0.1), BACKENDS_OF_GROUP)
    ),
    "2 %, one backend 20 %": lambda random: np.array([0.2] + [0.02] * (BACKENDS_OF_GROUP - 1)),
    "2 %, one process in 20 slower by 10 % to 60 %": lambda random: np.full(BACKENDS_OF_GROUP, 0.02),
}
BACKENDS_OF_GROUP = 8
SIMULATED = (2, 3, 4, 8)
INTERVAL_HEADINGS = (
    "noise between processes",
    "processes a side",
    "intervals that hold the truth",
    "those of the noisiest",
    "half their width, median",
    "false alarms, any of 8 pairs",
)
LIMIT = 0.05
GATE_NOISE, GATE_PROCESSES, PAIRS, TRIALS = (0.01, 0.02, 0.05), (3, 4, 8, 10, 16), 40, 500
GATE_HEADINGS = (
    "noise between processes",
    "processes a side",
    "one pair of equals passes",
    "in theory",
    "40 pairs of equals pass",
    "in theory",
    "40 pairs of equals fail",
    "5 % slower passes",
    "6 % slower passes",
)


def simulated(
    headings: Sequence[str], row: Callable[[Any, int], list[str]], noise: Iterable[Any], counts: Sequence[int]
) -> str:
    """A table with a row for each noise and number of processes."""
    lines = [f"| {' | '.join(headings)} |", "| --- |" + " ---: |" * (len(headings) - 1)]
    lines += [f"| {' | '.join(row(each, count))} |" for each in noise for count in counts]
    return "\n".join(lines)


def interval_row(noise: str, processes: int) -> list[str]:
    """How often intervals hold the truth, and how often a comparison of equals raises an alarm."""
    from convbench.results.analysis.significance import MIN_EFFECT, judge, log_difference, scatter

    random = np.random.default_rng(processes)
    shape = (2, BACKENDS_OF_GROUP, processes)
    held: list[list[bool]] = []
    widths, alarms = [], 0
    for _ in range(TRIALS):
        spread = NOISE[noise](random)
        logs = random.normal(0, 1, shape) * spread[:, None]
        if "slower" in noise:
            logs += np.where(random.random(shape) < 0.05, random.uniform(0.1, 0.5, shape), 0)
        base, new = np.exp(logs).tolist()
        group = scatter([*base, *new])
        gaps = [log_difference(*sides, group) for sides in zip(base, new, strict=True)]
        margins = [gap.margin(0.05) for gap in gaps]
        inside = [abs(gap.estimate) <= margin for gap, margin in zip(gaps, margins, strict=True)]
        held.append([*inside, inside[int(spread.argmax())]])
        widths += margins
        alarms += any(each.verdict in ("more", "less") for each in judge(gaps, math.log1p(MIN_EFFECT)))
    *every, noisiest = (sum(column) / TRIALS for column in zip(*held, strict=True))
    figures = (statistics.fmean(every), noisiest, math.expm1(statistics.median(widths)), alarms / TRIALS)
    return [noise, str(processes), *(f"{figure:.1%}" for figure in figures)]


def gate_row(noise: float, processes: int) -> list[str]:
    """How often the gate passes equals, all of PAIRS pairs or one, and how often it passes what is slower."""
    from scipy import stats

    from convbench.results.analysis.significance import CONFIDENCE, MIN_EFFECT, Judged, judge, log_difference

    random = np.random.default_rng(processes)
    margin, freedom = math.log1p(LIMIT), 2 * (processes - 1)

    def judged(slower: float, pairs: int) -> list[Judged]:
        base, new = random.normal(0, noise, (2, pairs, processes))
        sides = zip(np.exp(base).tolist(), np.exp(new + math.log1p(slower)).tolist(), strict=True)
        return judge([log_difference(*each) for each in sides], math.log1p(MIN_EFFECT))

    equals = [judged(0.0, PAIRS) for _ in range(TRIALS)]
    passing = [[each.upper < margin for each in comparison] for comparison in equals]
    failing = [
        any(each.verdict == "more" and each.low > margin for each in comparison) for comparison in equals
    ]
    distance = margin / (noise * math.sqrt(2 / processes))
    # Student's t with one spread for both sides; Welch's has a few degrees of freedom less
    theory = float(stats.nct.sf(stats.t.ppf(CONFIDENCE, freedom), freedom, distance))
    slow = [
        sum(judged(slower, 1)[0].upper < margin for _ in range(4 * TRIALS)) / (4 * TRIALS)
        for slower in (LIMIT, LIMIT + 0.01)
    ]
    figures = (
        statistics.fmean(map(statistics.fmean, passing)),
        theory,
        sum(map(all, passing)) / TRIALS,
        theory**PAIRS,
        sum(failing) / TRIALS,
        *slow,
    )
    return [f"{noise:.0%}", str(processes), *(f"{figure:.1%}" for figure in figures)]


if __name__ == "__main__":
    main()
