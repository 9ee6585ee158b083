"""Reads one side of a comparison: what each combination measured, process by process, and its conditions."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbench.registry.errors import UsageError
from convbench.results.analysis.significance import OnMachine
from convbench.results.schema import COMBINATION, CONDITIONS, MEASURED, Combination, Row, columns
from convbench.results.storage.pytest_benchmark import looks_like_json, read_pytest_benchmark
from convbench.results.storage.reader import read_table, results_file, row_place, with_defaults

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

UNTOLD = {
    "fused": "0",
    "concurrent_devices": "0",
}  # the values of files that were written before these columns existed
PROCESS = ("run_id", "kind", "round")
OPTIONAL = ("flags", "started_at", "node", "block")  # a table made by hand may lack them
VALUES = ("status", "error", "step_ms_median", "served_flops_fraction", "val_accuracy", "epochs")
TINY, HUGE = 5e-324, sys.float_info.max  # the floats next to zero and to infinity
LATER = {column.name for column in columns(Row) if column.later}


@dataclass(frozen=True)
class Measured:
    """What one side has of one combination.

    `step_ms` holds a median per process, and `processes` a number for each, the same in every file for the same
    round of the same run, `machines` one for each machine of a cluster; `served` the smallest share of the FLOPs
    that the backend computed itself in any of them, as far as it is known; `accuracies` and `epochs` a value per
    training; `failure` the status and error of the first process that failed; `conditions` every value found;
    `flags` how many of the processes timed each flag struck.
    """

    step_ms: tuple[float, ...] = ()
    processes: tuple[float, ...] = ()
    machines: tuple[float, ...] = ()
    served: float | None = None
    accuracies: tuple[float, ...] = ()
    epochs: tuple[float, ...] = ()
    failure: str | None = None
    conditions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)

    @property
    def times(self) -> Mapping[Hashable, float]:
        """The median step time of each process."""
        if not any(self.machines):
            return dict(zip(self.processes, self.step_ms, strict=True))
        return dict(zip(map(OnMachine, self.processes, self.machines), self.step_ms, strict=True))


@dataclass(frozen=True)
class Side:
    """A file of results under the name it is shown by.

    `runs` are the runs that its steps were timed in, and `period` when the first and the last of these processes
    started, None where it does not tell. `machines` has the model of each machine that they ran on; `kinds` what
    was measured in blocks on machines of each model, where there are several.
    """

    name: str
    combinations: Mapping[Combination, Measured]
    runs: frozenset[str] = frozenset()
    period: tuple[datetime, datetime] | None = None
    machines: Mapping[Hashable, str] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[Combination, Measured]] = field(default_factory=dict)


def read_side(source: Path | str | pd.DataFrame, name: str) -> Side:
    """Read a results.csv, a run directory, a pytest-benchmark file, or a directory of such files.

    Raises:
        UsageError: it cannot be read.
    """
    frame = load(source)
    model = frame["device_name"].astype(object)
    of_blocks = model[frame["block"].notna()].dropna().unique()
    kinds = sorted(map(str, of_blocks)) if len(of_blocks) > 1 else []
    return Side(
        name,
        summed_up(frame, source, name),
        *when(frame),
        machines_of(frame),
        {kind: summed_up(frame[(model == kind).to_numpy()], source, name) for kind in kinds},
    )


def place(source: Path | str | pd.DataFrame, name: str, at: Any) -> str:
    """Where the row at a position of a side's table is, to be named in errors: a file and its line."""
    return row_place(results_file(Path(source)), int(at)) if isinstance(source, (str, Path)) else name


def when(frame: pd.DataFrame) -> tuple[frozenset[str], tuple[datetime, datetime] | None]:
    """The runs that timed steps, and when their first and last process started."""
    import pandas as pd

    measured = frame["status"].isin(MEASURED) & frame["step_ms_median"].notna()
    timed = frame[((frame["kind"] == "time") & measured).to_numpy()]
    started = pd.to_datetime(timed["started_at"], utc=True, errors="coerce").dropna()
    period = (started.min().to_pydatetime(), started.max().to_pydatetime()) if len(started) else None
    return frozenset(map(str, timed["run_id"].dropna().unique())), period


def machines_of(frame: pd.DataFrame) -> dict[Hashable, str]:
    """The model of each machine that measured something."""
    rows = frame.loc[frame["status"].isin(MEASURED).to_numpy(), ["node", "machine_id", "device_name"]]
    rows = rows.drop_duplicates().astype(object).fillna("")
    return {
        node or machine: model or "unknown" for node, machine, model in rows.to_numpy() if node or machine
    }


def load(source: Path | str | pd.DataFrame) -> pd.DataFrame:
    """The columns that a comparison needs."""
    if not isinstance(source, (str, Path)):
        wanted = (*COMBINATION, *CONDITIONS, *PROCESS, *VALUES)
        if missing := [name for name in wanted if name not in source and name not in LATER]:
            raise UsageError(f"the table lacks the columns {', '.join(missing)}")
        return with_defaults(source.reindex(columns=[*wanted, *OPTIONAL]))
    path = Path(source)
    if path.is_dir() and not (path / "results.csv").exists() and (files := sorted(path.glob("*.json"))):
        return read_pytest_benchmark(files)
    path = results_file(path)
    if looks_like_json(path):
        return read_pytest_benchmark([path])
    return read_table(path, {*COMBINATION, *CONDITIONS, *PROCESS, *VALUES, *OPTIONAL})


def summed_up(
    frame: pd.DataFrame, source: Path | str | pd.DataFrame, name: str
) -> dict[Combination, Measured]:
    """The measurements of each combination in a table."""
    import numpy as np

    if not len(frame):
        return {}
    # A resumed run tries again what had failed, and appends: the last row of a process counts.
    frame = frame[~frame.duplicated([*COMBINATION, *PROCESS], keep="last")]
    combination = codes(frame, tuple(COMBINATION))
    good = frame["status"].isin(MEASURED).to_numpy()
    # A combination that was found incorrect once has no figures, whatever else was measured of it.
    wrong = combination[(frame["status"] == "incorrect").to_numpy()]
    measured = good & ~np.isin(combination, wrong)
    timed = measured & (frame["kind"] == "time").to_numpy() & frame["step_ms_median"].notna().to_numpy()
    trained = measured & (frame["kind"] == "train").to_numpy() & frame["val_accuracy"].notna().to_numpy()
    for column, chosen, least, most, what in (
        ("step_ms_median", timed, TINY, HUGE, "a time is a number above zero"),
        ("val_accuracy", trained, 0.0, 1.0, "an accuracy is a share from 0 to 1"),
    ):
        values = numbers(frame, column)[chosen]
        if len(bad := values[(values < least) | (values > most)]):
            at = frame.index[chosen][(values < least) | (values > most)][0]
            raise UsageError(f"{place(source, name, at)}: {column} is {bad[0]:g}; {what}")
    step_ms = split(frame, "step_ms_median", combination, timed)
    processes = split(numbered(frame), "process", combination, timed)
    machines = split(numbered(frame), "machine", combination, timed)
    shares = numbers(frame, "served_flops_fraction")
    served = split(frame, "served_flops_fraction", combination, timed & (shares >= 0) & (shares <= 1))
    accuracies = split(frame, "val_accuracy", combination, trained)
    epochs = split(frame, "epochs", combination, trained)
    failures = failed(frame, combination, good)
    flags = flagged(frame, combination, timed)
    # Only rows with a measurement: a process that failed early knows few of its conditions.
    shared = conditions(frame, combination, timed | trained)
    return {
        key: Measured(
            step_ms=step_ms.get(code, ()),
            processes=processes.get(code, ()),
            machines=machines.get(code, ()),
            served=min(served.get(code, ()), default=None),
            accuracies=accuracies.get(code, ()),
            epochs=epochs.get(code, ()),
            failure=failures.get(code),
            conditions=shared.get(code, {}),
            flags=flags.get(code, {}),
        )
        for code, key in keys(frame, combination)
    }


def codes(frame: pd.DataFrame, names: Sequence[str]) -> NDArray[np.int64]:
    """Number the rows by their distinct values in these columns, (rows,)."""
    import numpy as np
    import pandas as pd

    found: NDArray[np.int64] = np.zeros(len(frame), dtype=np.int64)
    for name in names:
        values = frame[name]
        own = pd.factorize(values.cat.codes if values.dtype == "category" else values)[0].astype(np.int64) + 1
        found = pd.factorize(found * (own.max(initial=0) + 1) + own)[0]  # 0 where a value is missing
    return found


def numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers that floats hold exactly, hashes: a `process` for each row's run and round, and a `machine` for its
    node where the row is of a block, 0 where it is not."""
    import pandas as pd

    known = pd.DataFrame(
        {"run_id": frame["run_id"].astype(object), "round": frame["round"].astype("float64")}
    )
    node = frame["node"].astype(object).fillna("").astype(str)
    machine = (pd.util.hash_array(node.to_numpy(dtype=object)) >> 11).astype("float64") + 1
    return pd.DataFrame(
        {
            "process": pd.util.hash_pandas_object(known, index=False).to_numpy() >> 11,
            "machine": machine * frame["block"].notna().to_numpy(),
        }
    )


def numbers(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """A column as floats, NaN where a value is missing."""
    import numpy as np

    return frame[column].to_numpy(dtype=np.float64, na_value=np.nan)


def split(
    frame: pd.DataFrame, column: str, combination: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> dict[int, tuple[float, ...]]:
    """The chosen values of a column, by combination."""
    import numpy as np

    whose, values = combination[chosen], numbers(frame, column)[chosen]
    order = np.argsort(whose, kind="stable")
    found, starts = np.unique(whose[order], return_index=True)
    parts = np.split(values[order], starts[1:]) if len(found) else []
    return {int(code): tuple(part.tolist()) for code, part in zip(found, parts, strict=True)}


def flagged(
    frame: pd.DataFrame, combination: NDArray[np.int64], timed: NDArray[np.bool_]
) -> dict[int, dict[str, int]]:
    """How many of the timing processes of each combination carry each flag."""
    chosen = timed & frame["flags"].notna().to_numpy()
    found: dict[int, dict[str, int]] = defaultdict(Counter)
    for code, words in zip(combination[chosen].tolist(), frame.loc[chosen, "flags"].tolist(), strict=True):
        for flag in dict.fromkeys(str(words).split()):
            found[code][flag] += 1
    return {code: dict(counts) for code, counts in found.items()}


def failed(frame: pd.DataFrame, combination: NDArray[np.int64], good: NDArray[np.bool_]) -> dict[int, str]:
    """The first failure of each combination that has one."""
    rows = frame.loc[~good, ["kind", "status", "error"]].astype(object).fillna("")
    found: dict[int, str] = {}
    for code, (kind, status, error) in zip(
        combination[~good].tolist(), rows.to_numpy().tolist(), strict=True
    ):
        found.setdefault(code, f"{kind} {status}{f': {error}' if error else ''}")
    return found


def conditions(
    frame: pd.DataFrame, combination: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> dict[int, dict[str, frozenset[str]]]:
    """Every value of every condition under which a combination was measured."""
    frame, combination = frame[chosen], combination[chosen]
    first = ~frame[list(CONDITIONS)].assign(combination=combination).duplicated()
    found: dict[int, dict[str, set[str]]] = {}
    rows = frame.loc[first, list(CONDITIONS)].astype(object)
    rows = rows.where(rows.notna(), "")
    for code, values in zip(combination[first].tolist(), rows.to_numpy().tolist(), strict=True):
        for name, value in zip(CONDITIONS, values, strict=True):
            found.setdefault(code, {}).setdefault(name, set()).add(str(value) or UNTOLD.get(name, ""))
    # A timing process may lack a condition that a training process has: unknown is not a second value.
    return {
        code: {name: frozenset(values - {""} or values) for name, values in each.items()}
        for code, each in found.items()
    }


def keys(frame: pd.DataFrame, combination: NDArray[np.int64]) -> Iterator[tuple[int, Combination]]:
    """Each combination with its number, in order of appearance."""
    import numpy as np

    found, first = np.unique(combination, return_index=True)
    rows = frame.iloc[first][list(COMBINATION)].astype(object)
    for code, values in zip(found.tolist(), rows.to_numpy().tolist(), strict=True):
        yield code, Combination(**dict(zip(COMBINATION, values, strict=True)))
