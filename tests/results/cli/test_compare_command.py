"""`convbench compare`: formats, inputs, and exit codes that cannot lie."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator

from convbench.registry import NothingRan
from convbench.registry.cli.main import main
from convbench.results.comparison.compare import AccuracyPair, TimePair
from convbench.results.comparison.history import Trend
from convbench.results.comparison.pairing import Left
from convbench.results.schema import Combination, Row, Sample
from convbench.results.storage.csv_format import header, to_line
from convbench.results.storage.pytest_benchmark import stats, write_pytest_benchmark
from result_rows import row, samples, timed, trained, write

BASE = [10.0, 10.01, 9.99]
SLOWER = [12.0, 12.1, 11.9]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base" / "results.csv", [*timed(BASE), *trained([0.70, 0.71, 0.69])])


@pytest.fixture
def new(tmp_path: Path) -> Path:
    rows = [*timed(SLOWER), *trained([0.70, 0.71, 0.69]), *timed(BASE, backend="mine|=cmd")]
    return write(tmp_path / "new" / "results.csv", rows)


class Result(NamedTuple):
    exit_code: object
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def convbench(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `convbench compare` as the command line does."""

    def run(*words: object) -> Result:
        with pytest.raises(SystemExit) as ending:
            main(["compare", *map(str, words)])
        return Result(ending.value.code, *capsys.readouterr())

    return run


def test_the_table_tells_verdict_ratio_accuracy_and_what_is_missing(
    convbench: Run, base: Path, new: Path
) -> None:
    result = convbench(base, new)
    assert result.exit_code == 0, result.stderr
    for text in ("lenet/im2col/cpu/float32/b128", "1.200 (", "slower", "0.7000 (n=3)", "only in new", "n=3"):
        assert text in result.stdout
    assert result.stderr == ""


def test_markdown_is_tables(convbench: Run, base: Path, new: Path) -> None:
    lines = convbench(base, new, "--format", "markdown").stdout.splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert "# base and new" in lines
    assert len(tables) == 3 + 3 + 3
    missing = next(line for line in tables if "only in new" in line)
    assert "mine\\|=cmd" in missing


def test_csv_is_one_table_with_numbers(convbench: Run, base: Path, new: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(convbench(base, new, "--format", "csv").stdout)))
    assert [(each["measure"], each["verdict"]) for each in rows[:2]] == [
        ("step_ms", "slower"),
        ("val_accuracy", "unclear"),
    ]
    assert float(rows[0]["ratio"]) == pytest.approx(1.2, rel=1e-3)
    assert rows[-1]["reason"] == "only in new"
    assert rows[-1]["verdict"] == ""


def test_json_holds_everything(convbench: Run, base: Path, new: Path) -> None:
    found = json.loads(convbench(base, new, "--format", "json").stdout)
    assert found["files"] == ["base", "new"]
    assert found["times"][0]["verdict"] == "slower"
    assert found["times"][0]["combination"]["backend"] == "im2col"
    assert found["accuracies"][0]["base_seeds"] == 3
    assert found["left_out"][0]["reason"] == "only in new"


def test_flags_of_either_side_are_in_every_format(convbench: Run, base: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "flagged" / "results.csv", timed(SLOWER, flags="busy drifting"))
    page = tmp_path / "page.html"
    for style in ("table", "markdown", "csv", "json"):
        text = convbench(base, new, "--format", style, "--html", page).stdout
        assert "flagged unlike: busy in 0 of 3 processes of the base and 3 of 3 of the new" in text
    assert "flagged unlike: busy in 0 of 3 processes" in page.read_text(encoding="utf-8")
    (pair,) = json.loads(text)["times"]
    assert (pair["base_flags"], pair["new_flags"]) == ({}, {"busy": 3, "drifting": 3})
    rows = csv.DictReader(io.StringIO(convbench(base, new, "--format", "csv").stdout))
    assert next(rows)["new_flags"] == "busy=3 drifting=3"


def test_how_many_processes_would_decide_is_in_every_format(
    convbench: Run, base: Path, tmp_path: Path
) -> None:
    new = write(tmp_path / "unclear" / "results.csv", timed([9.0, 13.0, 11.0]))
    page = tmp_path / "page.html"
    found = json.loads(convbench(base, new, "--format", "json", "--html", page).stdout)
    needed = found["times"][0]["processes_needed"]
    assert found["advice"] == f"about {needed} processes a side would decide this"
    for text in (
        convbench(base, new).stdout,
        convbench(base, new, "--format", "markdown").stdout,
        page.read_text(encoding="utf-8"),
    ):
        assert found["advice"] in " ".join(text.split())
    rows = csv.DictReader(io.StringIO(convbench(base, new, "--format", "csv").stdout))
    assert next(rows)["processes_needed"] == str(needed)


def test_a_note_of_many_pairs_is_told_once(
    convbench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("im2col", "fft", "native")
    one = [each for name in names for each in timed([10.0], backend=name)]
    failed = [
        row(backend=name, kind="verify", status="unavailable", error="no device") for name in ("a", "b")
    ]
    base = write(tmp_path / "base" / "results.csv", [*one, *failed])
    other = [*one[1:], *timed([10.0], dataset="another"), *failed, *timed([1.0], backend="mine")]
    new = write(tmp_path / "new" / "results.csv", other)
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        text = convbench(base, new, "--force").stdout
        assert max(map(len, text.splitlines())) <= width
        text = " ".join(text.split())
        assert text.count("its spread is assumed") == 1
        assert "all of these: one process on a side: its spread is assumed" in text
        assert "lenet/im2col: unlike dataset (fashion-mnist and another)" in text
        assert "lenet/a, lenet/b: on both sides: verify unavailable: no device" in text
        assert "lenet/mine: only in new" in text


def json_schema() -> Any:
    return json.loads(
        files("convbench.results.comparison").joinpath("schemas", "comparison.schema.json").read_text()
    )


@pytest.mark.parametrize("sides", [2, 3])
def test_json_is_as_its_schema_says(
    convbench: Run, base: Path, new: Path, tmp_path: Path, sides: int
) -> None:
    validator = Draft202012Validator(json_schema())
    write(new, [*timed([12.0], served_flops_fraction=0.5), *trained([0.70]), *timed(BASE, backend="mine")])
    third = write(tmp_path / "third.csv", timed([5e-324, 1e300]))  # noise beyond the size of a float
    found = json.loads(convbench(*[base, new, third][:sides], "--format", "json").stdout)
    validator.validate(found)
    assert found["times"]
    assert found["accuracies"][0]["low"] is None
    assert (found["times"][0]["base_served"], found["times"][0]["new_served"]) == (None, 0.5)
    assert len(found["trends"]) == (sides == 3)
    for broken in ({**found, "times": 3}, {**found, "min_effect": 0}, {**found, "more": 1}, {"files": []}):
        assert not validator.is_valid(broken)


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (TimePair, "time"),
        (AccuracyPair, "accuracy"),
        (Left, "left"),
        (Trend, "trend"),
        (Combination, "combination"),
    ],
)
def test_the_schema_has_every_field(record: type, name: str) -> None:
    defined = json_schema()["$defs"][name]
    assert list(defined["properties"]) == defined["required"] == [each.name for each in fields(record)]


def test_more_files_show_a_history(convbench: Run, base: Path, new: Path, tmp_path: Path) -> None:
    third = write(tmp_path / "third.csv", timed([14.4, 14.5, 14.3]))
    result = convbench(base, new, third)
    assert result.exit_code == 0, result.stderr
    assert "History of the step time" in result.stdout
    assert "third.csv, ms" in result.stdout


def test_the_gate_is_exit_code_1_and_still_shows_the_table(convbench: Run, base: Path, new: Path) -> None:
    result = convbench(base, new, "--fail-if-slower", "5%")
    assert result.exit_code == 1
    assert "slower" in result.stdout
    assert "1 of 1 pairs are slower by more than 5.0%" in result.stderr
    assert convbench(base, new, "--fail-if-slower", "30%").exit_code == 0
    assert convbench(new, base, "--fail-if-slower", "5%").exit_code == 0


def test_a_backend_that_fell_back_to_torch_does_not_pass(convbench: Run, tmp_path: Path) -> None:
    base = write(tmp_path / "base.csv", timed(SLOWER, served_flops_fraction=1.0))
    new = write(tmp_path / "new.csv", timed(BASE, served_flops_fraction=0.0))
    result = convbench(base, new, "--fail-if-slower", "5%")
    assert result.exit_code == 1
    assert "unlike share of the FLOPs served by the backend (100 % and 0 %)" in result.stdout
    assert "in 1 of 1 pairs the backend left to torch what it computed in the base" in result.stderr
    assert convbench(base, new).exit_code == 0


def test_a_gate_finer_than_the_smallest_effect_is_not_deaf(convbench: Run, tmp_path: Path) -> None:
    base = write(tmp_path / "base.csv", timed([10.0, 10.01, 9.99]))
    new = write(tmp_path / "new.csv", timed([10.2, 10.21, 10.19]))
    assert convbench(base, new, "--fail-if-slower", "1%").exit_code == 1
    assert convbench(base, new, "--fail-if-slower", "5%").exit_code == 0


def test_a_gate_that_could_not_have_seen_it_is_not_green(convbench: Run, tmp_path: Path) -> None:
    noisy = [8.0, 10.0, 12.5]
    both = [*timed([10.0, 10.01, 9.99]), *timed(noisy, backend="noisy")]
    base, new = write(tmp_path / "base.csv", both), write(tmp_path / "new.csv", both)
    blind = convbench(base, new, "--fail-if-slower", "5%")
    assert blind.exit_code == 3
    assert "in 1 of 2 pairs a slow-down by 5.0% is not ruled out; lenet/noisy/" in blind.stderr
    assert "unclear" in blind.stdout
    allowed = convbench(base, new, "--fail-if-slower", "5%", "--allow-unclear")
    assert allowed.exit_code == 0
    assert "noise hides as much in 1" in allowed.stderr
    assert convbench(base, new).exit_code == 0
    all_noisy = write(tmp_path / "noisy.csv", timed(noisy))
    assert convbench(all_noisy, all_noisy, "--fail-if-slower", "5%", "--allow-unclear").exit_code == 3
    assert convbench(base, new, "--allow-unclear").exit_code == 2


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([], 3),
        ([row(status="crashed")], 3),
        ([row(kind="verify")], 3),
        (timed(BASE, backend="another"), 3),
        (timed(BASE, machine_id="another"), 3),
        (timed(BASE, status="unavailable"), 3),
        (trained([0.7, 0.7]), 3),
        ([*timed(BASE), *trained([0.7, 0.71, 0.69])], 0),
    ],
)
def test_nothing_judged_is_never_green(
    convbench: Run, base: Path, tmp_path: Path, rows: list[Row], code: int
) -> None:
    new = write(tmp_path / "other.csv", rows)
    assert convbench(base, new, "--fail-if-slower", "5%").exit_code == code


def test_unlike_machines_are_compared_when_forced(convbench: Run, base: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "new.csv", timed(SLOWER, machine_id="another"))
    refused = convbench(base, new)
    assert refused.exit_code == 3
    assert "unlike machine_id (0123456789ab and another)" in refused.stderr
    forced = convbench(base, new, "--force")
    assert forced.exit_code == 0
    assert "unlike machine_id" in forced.stdout


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", "{", '{"benchmarks": 3}', "[]", '{"benchmarks": [{}]}']
)
def test_a_file_that_is_no_result_is_exit_code_2(
    convbench: Run, base: Path, tmp_path: Path, content: str
) -> None:
    broken = tmp_path / "broken"
    broken.write_text(content)
    for sides in ((base, broken), (broken, base)):
        result = convbench(*sides)
        assert result.exit_code == 2
        assert "broken" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("given", ["500%", "100%", "0%"])
def test_a_smallest_effect_out_of_range_is_named_as_it_was_given(
    convbench: Run, base: Path, new: Path, given: str
) -> None:
    result = convbench(base, new, "--min-effect", given)
    assert result.exit_code == 2
    assert f"--min-effect is a percentage between 0% and 100%, not {given}" in result.stderr


def test_the_legend_names_the_smallest_effects_with_their_units(
    convbench: Run, base: Path, new: Path
) -> None:
    said = convbench(base, new).stdout
    assert "exceeds 3 % of the base (for accuracies 1 percentage point)" in said


@pytest.mark.parametrize(
    "words",
    [
        ["nowhere.csv"],
        [],
        ["--fail-if-slower", "5"],
        ["--fail-if-slower", "-5%"],
        ["--fail-if-slower", "nan%"],
    ],
)
def test_wrong_usage_is_exit_code_2(convbench: Run, base: Path, words: list[str]) -> None:
    extra = [base] if words and words[0].startswith("--") else []
    assert convbench(base, *extra, *words).exit_code == 2


# pytest-benchmark


def benchmark_json(path: Path, seconds: float, machine: str = "A processor", **extra: Any) -> Path:
    content = {
        "machine_info": {"node": path.stem, "cpu": {"brand_raw": machine, "count": 8}},
        "benchmarks": [
            {
                "name": "test_a",
                "fullname": "tests/test_a.py::test_a",
                "stats": {"median": seconds},
                "extra_info": extra,
            }
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_files_of_pytest_benchmark_are_compared(convbench: Run, tmp_path: Path) -> None:
    base, new = benchmark_json(tmp_path / "a.json", 0.010), benchmark_json(tmp_path / "b.json", 0.025)
    result = convbench(base, new, "--fail-if-slower", "5%", "--format", "json")
    assert result.exit_code == 1
    pair = json.loads(result.stdout)["times"][0]
    assert pair["combination"]["architecture"] == "tests/test_a.py::test_a"
    assert (pair["base_ms"], pair["new_ms"]) == pytest.approx((10, 25))
    assert "one process" in pair["note"]


def test_a_directory_of_files_is_as_many_processes(convbench: Run, tmp_path: Path) -> None:
    for side, seconds in (("base", 0.0100), ("new", 0.0105)):
        for number in range(4):
            benchmark_json(tmp_path / side / f"{number}.json", seconds * (1 + number / 1000))
    pair = json.loads(convbench(tmp_path / "base", tmp_path / "new", "--format", "json").stdout)["times"][0]
    assert pair["base_processes"] == 4
    assert pair["verdict"] == "slower"


def test_a_benchmark_that_names_its_combination_is_set_against_a_run(
    convbench: Run, base: Path, tmp_path: Path
) -> None:
    shared = {name: value for name, value in vars(timed(BASE)[0]).items() if value is not None}
    new = benchmark_json(tmp_path / "new.json", 0.020, **shared)
    result = convbench(base, new)
    assert result.exit_code == 0, result.stderr
    assert "slower" in result.stdout


def test_a_benchmark_on_random_images_is_set_against_a_run_by_force_alone(
    convbench: Run, base: Path, tmp_path: Path
) -> None:
    shared = {name: value for name, value in vars(timed(BASE)[0]).items() if value is not None}
    del shared["train_images"]  # which `time_step` does not name
    new = benchmark_json(tmp_path / "new.json", 0.020, **shared | {"dataset": "random images"})
    unlike = "unlike dataset (fashion-mnist and random images); train_images (60000 and unknown)"
    refused = convbench(base, new)
    assert refused.exit_code == 3
    assert unlike in refused.stderr
    assert unlike in convbench(base, new, "--force").stdout


@pytest.fixture
def exported(base: Path, tmp_path: Path) -> Path:
    """A run of three processes, as a file of pytest-benchmark."""
    steps = [
        each for number, time in enumerate(BASE) for each in samples([time, time, 2 * time], round=number)
    ]
    (base.parent / "samples.csv").write_text(header(Sample) + "".join(map(to_line, steps)))
    return write_pytest_benchmark(base.parent, tmp_path / "exported.json")


def test_a_run_written_for_pytest_benchmark_is_the_run(convbench: Run, base: Path, exported: Path) -> None:
    """On either side, and mixed: the processes are still three, and the ratio is one."""
    for sides in ((base, exported), (exported, base), (exported, exported)):
        result = convbench(*sides, "--format", "json")
        assert result.exit_code == 0, result.stderr
        pair = json.loads(result.stdout)["times"][0]
        assert (pair["verdict"], pair["note"]) == ("same", "")
        assert pair["ratio"] == pytest.approx(1)
        assert (pair["base_processes"], pair["new_processes"]) == (3, 3)


def test_pytest_benchmark_itself_compares_what_is_written(exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(exported.read_text())
    program = [sys.executable, "-m", "pytest_benchmark", "compare", str(exported), str(other)]
    options = ["--columns=min,max,mean,stddev,median,iqr,outliers,ops,rounds,iterations", "--group-by=group"]
    ended = subprocess.run([*program, *options], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "lenet b128 float32 cpu" in ended.stdout
    rows = [line for line in ended.stdout.splitlines() if line.startswith("lenet/im2col/cpu/float32")]
    assert len(rows) == 2
    assert "9.9900 (1.0)" in rows[0]
    assert rows[0].split()[-2:] == ["9", "1"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 9])
def test_its_statistics_are_those_of_pytest_benchmark(count: int) -> None:
    from pytest_benchmark.stats import Stats

    theirs = Stats()
    seconds = [0.010, 0.012, 0.011, 0.030, 0.009, 0.0105, 0.0115, 0.013, 0.002][:count]
    for each in seconds:
        theirs.update(each)
    ours = stats(seconds)
    hinges = {
        "q1",
        "q3",
        "iqr",
        "iqr_outliers",
        "outliers",
        "ld15iqr",
        "hd15iqr",
    }  # there are many definitions
    for name, value in theirs.as_dict().items():
        if name not in hinges or count % 2 == 0:
            assert ours[name] == pytest.approx(value), name


@pytest.mark.parametrize("wrong", [3, [0], [True], ["1"], [-1.0]])
def test_processes_that_are_no_times_are_refused(
    convbench: Run, base: Path, tmp_path: Path, wrong: Any
) -> None:
    path = benchmark_json(tmp_path / "a.json", 0.010, step_ms_of_processes=wrong)
    result = convbench(base, path)
    assert result.exit_code == 2
    assert "step_ms_of_processes is" in result.stderr


def test_nothing_timed_makes_no_file(tmp_path: Path) -> None:
    run = write(tmp_path / "run" / "results.csv", [row(status="crashed"), *trained([0.7])])
    with pytest.raises(NothingRan, match="no step was timed"):
        write_pytest_benchmark(run.parent, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_benchmarks_of_unlike_machines_are_refused(convbench: Run, tmp_path: Path) -> None:
    sides = (benchmark_json(tmp_path / f"{name}.json", 0.01, machine=name) for name in ("x", "y"))
    result = convbench(*sides)
    assert result.exit_code == 3
    assert "unlike machine_id" in result.stderr


def test_a_line_cut_short_is_a_warning(convbench: Run, base: Path, new: Path) -> None:
    new.write_bytes(new.read_bytes()[:-3])
    result = convbench(base, new)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {new}: the last line is cut short")


@pytest.mark.exhaustive
def test_a_million_rows_are_compared_in_seconds(convbench: Run, tmp_path: Path) -> None:
    lines = [
        to_line(each)
        for seed in range(100)
        for each in timed([10 + seed / 10 + number / 1000 for number in range(10)], seed=seed)
    ]
    path = tmp_path / "results.csv"
    with path.open("w") as file:
        file.write(header(Row))
        for number in range(500):
            file.write("".join(lines).replace("run,", f"run{number},"))
    began = time.perf_counter()
    result = convbench(path, path, "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["times"][0]["base_processes"] == 5000
    assert time.perf_counter() - began < 30  # about 3 s on two quiet cores; this catches a loop per row
