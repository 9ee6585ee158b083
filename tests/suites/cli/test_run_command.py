"""`convbench run` as a user types it: exit codes, what goes where, and one clear sentence for bad input."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import misbehaving
from convbench.registry import UsageError, discover
from convbench.registry.cli.main import build, main
from convbench.results.report.write import check_writable
from convbench.suites.cli.run import OPTION_KEYS, overridden
from convbench.suites.config.suite import DOTTED_KEYS, Suite, load_suite
from convbench.suites.runner.run import RunResult
from synthetic_run import synthetic_run

pytestmark = pytest.mark.usefixtures("preloaded_servers")  # of the commands that run in this process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = misbehaving.install(tmp_path_factory.mktemp("command") / "site")
    (site / "suite.toml").write_text(misbehaving.suite("right", "raises").to_toml())
    (site / "typo.toml").write_text("name = 'typo'\n\n[recipe]\nepoch = 3\n")
    return site


def refused(*arguments: str, site: Path, cwd: Path) -> str:
    """The one sentence a refusal consists of."""
    done = misbehaving.command("run", *arguments, site=site, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert list(cwd.iterdir()) == []
    assert lines[-1].startswith("convbench: ")
    return lines[-1].removeprefix("convbench: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "lenett"], "unknown suite 'lenett'; did you mean 'lenet'? available: "),
        (["--suite", "none.toml"], "cannot read suite none.toml: No such file or directory"),
        (["--suite", "SITE/typo.toml"], "line 4: unknown key 'recipe.epoch'; did you mean 'epochs'?"),
        (
            ["--suite", "lenet", "--budget-total", "5x"],
            "--budget-total: '5x' is not a duration; write it like",
        ),
        (["--suite", "lenet", "--budget-total", "0s"], "--budget-total is 0.0; it must be more than 0"),
        (
            ["--suite", "lenet", "--budget-total", "5m", "--against", "x==1"],
            "--against and --budget-total exclude each other",
        ),
        (
            ["--suite", "lenet", "--cluster", "auto", "--against", "x==1"],
            "--cluster and --against exclude each other: the other version is installed on this machine alone; "
            "run --against on each kind of machine",
        ),
        (
            ["--suite", "lenet", "--cluster", "auto", "--against", "x==1", "--dry-run"],
            "--cluster and --against exclude each other",
        ),
        (["--suite", "lenet", "--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["--suite", "lenet", "--budget", "-1"], "--budget is -1.0; it must be more than 0"),
        (["--suite", "lenet", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--suite", "lenet", "--batch-size", "many"], "--batch-size takes whole numbers, not 'many'"),
        (["--suite", "lenet", "--backend", "im2co"], "unknown backend 'im2co'; did you mean 'im2col'?"),
        (
            ["--suite", "lenet", "--architecture", "lenett"],
            "unknown architecture 'lenett'; did you mean 'lenet'?",
        ),
        (["--suite", "lenet", "--dataset", "mnist"], "unknown dataset 'mnist'"),
        (["--suite", "lenet", "--dtype", "float23"], "--dtype is 'float23'; did you mean 'float32'?"),
        (["--suite", "lenet", "--mode", "fast"], "--mode is 'fast'; available: compile, eager, graph"),
        (["--suite", "lenet", "--set", "recipe.epoch=1"], "unknown key 'recipe.epoch'; did you mean"),
        (["--suite", "lenet", "--set", "recipe.epochs"], "--set takes KEY=VALUE, not 'recipe.epochs'"),
        (["--suite", "lenet", "--set", "recipe.epochs=x"], "recipe.epochs is 'x'; it must be a whole number"),
        (["--suite", "lenet", "--out", "a", "--resume", "b"], "--out and --resume exclude each other"),
        (["--suite", "lenet", "--resume", "none"], "no run in none: there is no results.csv"),
        (["--resume", "none"], "no run in none: there is no results.csv"),
        (["--suite", "lenet", "--backend", ","], "--backend ',' names nothing"),
        (["--suite", "lenet", "--batch-size", " , "], "--batch-size ' , ' names nothing"),
        (["--suite", "lenet", "--precision", "7"], "--precision is 7.0; it must be less than 1"),
        (["--suite", "lenet", "--threads", "100000"], "timing.threads is 100000; it must be at most "),
        (["--suite", "lenet", "--threads", "100000", "--dry-run"], "timing.threads is 100000; it must be at"),
        ([], "--suite is missing; available: "),
        (
            ["--suite", "lenet", "--pytest-json", "none/times.json"],
            "cannot write none/times.json: No such file or directory",
        ),
    ],
)
def test_what_can_be_seen_at_once_is_refused_at_once(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    """In this process, for speed; the code and the sentence are what the command line would make of the error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convbench.suites.cli.run.signal.signal", lambda *_: None)
    with pytest.raises(UsageError) as refusal:
        build(discover())(
            ["run", *(argument.replace("SITE", str(site)) for argument in arguments)], standalone_mode=False
        )
    assert words in str(refusal.value)
    assert refusal.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["--device", "quantum"], "unknown device 'quantum'; available: cpu"),
        (["--batch-size", "91"], "batch size 91 is larger than the training set of tiny, 90 images"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    site: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    message = refused("--suite", str(site / "suite.toml"), *arguments, site=site, cwd=tmp_path)
    assert message.startswith(words)


def test_looking_whether_a_file_can_be_written_leaves_it_as_it_is(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("{}")
    for file in (old, new):
        check_writable(file)
    assert old.read_text() == "{}"
    assert not new.exists()
    with pytest.raises(UsageError, match=r"cannot write .*: Is a directory"):
        check_writable(tmp_path)


def test_tables_go_to_stdout_and_progress_to_stderr(site: Path, tmp_path: Path) -> None:
    done = misbehaving.command(
        "run",
        "--suite",
        site / "suite.toml",
        "--out",
        "out",
        "--seed",
        "0,1",
        "--no-time",
        site=site,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "right" in done.stdout
    assert "images/s" in done.stdout
    assert "[" not in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0] == "results go to out"
    assert lines[-2:] == ["table: out/table.md", "report: out/report.html"]
    progress = [line for line in lines if line.startswith("[")]
    # two verifications ended in an error; that their trainings are left out is not said again
    assert [line.split()[0] for line in progress] == [f"[{number}/8]" for number in (1, 2, 3, 4, 7, 8)]
    assert sum(": error, " in line for line in progress) == 2
    assert "\x1b" not in done.stderr + done.stdout  # no colours, no cursor
    assert "\r" not in done.stderr


def test_nothing_that_can_run_here_is_one_line_and_code_3_and_leaves_nothing(
    site: Path, tmp_path: Path
) -> None:
    done = misbehaving.command(
        "run", "--suite", site / "suite.toml", "--backend", "absent", "--out", "out", site=site, cwd=tmp_path
    )
    assert done.returncode == 3
    assert done.stderr.splitlines() == ["convbench: nothing can run here: absent: no such card"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_names_its_page_and_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = synthetic_run(tmp_path / "run") / "report.html"
    opened: list[str] = []
    monkeypatch.setattr("convbench.suites.runner.run.run", lambda *_, **__: RunResult(page.parent, ()))
    monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
    for options, pages in (([], []), (["--open"], [page.as_uri()])):
        with pytest.raises(SystemExit) as ended:
            main(["run", "--suite", "lenet", *options])
        assert ended.value.code == 0
        assert capsys.readouterr().err.splitlines()[-1] == f"report: {page}"
        assert opened == pages


def test_nothing_that_could_be_measured_is_code_3(site: Path, tmp_path: Path) -> None:
    done = misbehaving.command(
        "run", "--suite", site / "suite.toml", "--backend", "raises", "--out", "out", site=site, cwd=tmp_path
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "convbench: nothing could be measured; out/results.csv says why"


def test_a_dry_run_shows_the_plan_and_writes_nothing(site: Path, tmp_path: Path) -> None:
    done = misbehaving.command(
        "run",
        "--suite",
        site / "suite.toml",
        "--backend",
        "right,absent",
        "--dry-run",
        site=site,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "tiny/absent/cpu/float32/b16/contiguous/eager/s0  unavailable: no such card",
        "tiny/right/cpu/float32/b16/contiguous/eager/s0  to run",
    ]
    assert "2 combinations" in done.stderr
    assert re.search(r"it takes between \d+ s and \d+ min", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_two_versions_knows_no_total() -> None:
    """Two versions need the same rounds, so `--against` drops the total budget of a suite."""
    arguments = [
        "run",
        "--suite",
        "lenet",
        "--backend",
        "torch",
        "--device",
        "cpu",
        "--no-train",
        "--dry-run",
    ]
    alone = CliRunner().invoke(build(discover()), arguments)
    both = CliRunner().invoke(build(discover()), [*arguments, "--against", "fast==1.0"])
    assert (alone.exit_code, both.exit_code) == (0, 0)
    assert "time in 3 to 6 rounds" in alone.stderr
    assert "each, for both versions: verify, time in 6 rounds" in both.stderr
    assert "total budget" not in both.stderr


@pytest.mark.exhaustive
def test_on_a_terminal_there_is_a_bar(site: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = misbehaving.start_on(
        theirs, "run", "--suite", site / "suite.toml", "--out", "out", "--no-time", site=site, cwd=tmp_path
    )
    os.close(theirs)
    try:
        seen = read_all(ours, process)
    finally:
        process.kill()
    assert process.wait() == 0
    assert "\x1b[" in seen  # it moves the cursor
    assert "4/4" in seen
    assert "[1/4]" not in seen
    assert "train right" in seen  # what runs at present
    assert "verify tiny/raises/cpu/float32/b16/contiguous/eager/s0: error" in seen.replace("\r\n", "")


def read_all(terminal: int, process: subprocess.Popen[bytes]) -> str:
    seen, deadline = b"", time.monotonic() + 200
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            chunk = os.read(terminal, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(terminal)
    return seen.decode()


SAID = {
    "architecture": "mlp,lenet",
    "backend": "torch",
    "device": "cpu",
    "dtype": "float64,float32",
    "batch-size": "3,4",
    "memory-format": "channels_last",
    "mode": "compile",
    "seed": "5",
    "world-size": "2",
    "dataset": "other",
    "lr": "0.5",
    "epochs": "6",
    "budget": "7",
    "budget-total": "90",
    "timeout": "8",
    "memory": "9",
    "rounds": "10",
    "max-rounds": "20",
    "warmup-steps": "11",
    "steps": "12",
    "max-steps": "120",
    "precision": "0.03",
    "threads": "13",
}
FLAGS = ("fuse",)


def resolved(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Suite:
    """The suite that a command line comes to."""
    seen: list[Suite] = []

    def preview(suite: Suite, **_: object) -> list[object]:
        seen.append(suite)
        return []

    monkeypatch.setattr("convbench.suites.runner.prepare.preview", preview)
    done: Result = CliRunner().invoke(build(discover()), ["run", "--suite", "lenet", "--dry-run", *arguments])
    assert done.exit_code == 0, done.output
    return seen[0]


def test_every_option_reaches_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {*SAID, *FLAGS} == set(OPTION_KEYS)
    words = [word for option, said in SAID.items() for word in (f"--{option}", said)]
    suite = resolved(monkeypatch, *words, *(f"--{flag}" for flag in FLAGS))
    for option, key in OPTION_KEYS.items():
        table, _, name = key.rpartition(".")
        value = getattr(getattr(suite, table) if table else suite, name)
        items = (
            [str(item) for item in value]
            if isinstance(value, tuple)
            else [f"{value:g}"]
            if isinstance(value, float)
            else [str(value)]
        )
        assert ",".join(items) == SAID.get(option, "True"), option


def test_a_flag_that_is_not_given_stays_as_the_suite_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own.toml"
    own.write_text('name = "own"\nfuse = true\n')
    suite = resolved(monkeypatch, "--suite", str(own))
    assert suite.fuse


@pytest.mark.parametrize("key", DOTTED_KEYS)
def test_every_key_can_be_set(key: str, tmp_path: Path) -> None:
    from full_suite import FULL, OTHER

    table, _, name = key.rpartition(".")
    written, _, _ = FULL.override({key: OTHER[key]}).to_toml().partition("\n[per_backend.")
    (line,) = [line for line in written.splitlines() if line.startswith(f"{name} = ")]
    setting = f"{table}.{line}" if table else line
    assert overridden(FULL, {}, [setting.replace(" = ", "=")]) == FULL.override({key: OTHER[key]})


def test_what_is_different_for_a_backend_can_be_set() -> None:
    from full_suite import FULL

    changed = overridden(FULL, {"batch-size": (8,)}, ["per_backend.win*.batch_sizes=[2]"])
    assert changed.of_backend("winograd").batch_sizes == (2,)


def test_a_text_needs_no_quotes_to_be_set() -> None:
    from full_suite import FULL

    assert overridden(FULL, {}, ["recipe.init=default", "dataset=cifar"]).dataset == "cifar"


def test_rounds_and_steps_alone_are_exactly_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    lenet = load_suite(discover().suite("lenet")).timing
    assert lenet.max_rounds is not None
    assert lenet.max_steps is not None
    timing = resolved(monkeypatch, "--rounds", "2", "--steps", "7").timing
    assert (timing.rounds, timing.max_rounds, timing.steps, timing.max_steps) == (2, None, 7, None)
    timing = resolved(monkeypatch, "--rounds", "2", "--max-rounds", "7").timing
    assert (timing.rounds, timing.max_rounds, timing.steps, timing.max_steps) == (2, 7, 30, lenet.max_steps)


def test_what_is_not_said_stays_as_the_suite_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(monkeypatch) == load_suite(discover().suite("lenet"))


def test_repeating_and_commas_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = resolved(monkeypatch, "--backend", "torch, im2col", "--backend", "loops")
    assert suite.backends == ("torch", "im2col", "loops")
