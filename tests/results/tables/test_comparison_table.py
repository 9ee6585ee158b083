"""The comparison table: what a person sees of a run at a glance."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from convbench.registry import UsageError
from convbench.results import Row, RunStore, comparison_table, table_markdown
from convbench.results.cli.report import report
from convbench.results.tables.comparison_table import notes_of, print_table
from result_rows import row, samples, timed, trained


def backend(name: str, step_ms: float, **values: Any) -> list[Row]:
    """Three processes that timed a backend, and one that trained it."""
    speed = {"images_per_second": 128e3 / step_ms, "step_ms_p10": step_ms * 0.9, "step_ms_p90": step_ms * 1.2}
    times = timed([step_ms, step_ms * 1.01, step_ms * 0.99], backend=name, **speed, **values)
    return [*times, *trained([0.742], backend=name, train_seconds=71.0, **values)]


def cells(text: str, name: str) -> dict[str, str]:
    """A backend's line of the Markdown table."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    above = text.splitlines()[: text.splitlines().index(found)]
    headings = next(line for line in reversed(above) if line.startswith(("| backend", "| architecture")))
    titles, values = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in (headings, found))
    return dict(zip(titles, values, strict=True))


def test_backends_are_ordered_by_speed_and_set_against_torch() -> None:
    text = table_markdown([*backend("im2col", 40.0), *backend("torch", 10.0), *backend("fft", 20.0)])
    assert text.index("| torch |") < text.index("| fft |") < text.index("| im2col |")
    line = cells(text, "im2col")
    assert line["images/s"] == "3,200"
    assert line["step, ms"] == "40.0"
    assert line["p10–p90, ms"] == "36.0–48.0"
    assert line["processes"] == "3"
    assert line["x torch"] == "0.250× (0.244–0.256)"
    assert line["accuracy"] == "0.742 after 10 epochs, 71 s"
    assert line["status"] == "ok"


def test_a_budgeted_backend_is_plainly_marked() -> None:
    rows = [
        *timed([900.0], backend="loops", status="budget", notes="timed 4 of 30 steps within its budget"),
        *trained([0.103], backend="loops", status="budget", epochs=0.4, train_seconds=90.0),
    ]
    text = table_markdown(rows)
    assert cells(text, "loops")["status"] == "BUDGET"
    assert cells(text, "loops")["accuracy"] == "0.103 after 0.4 epochs, 90 s (budget)"
    assert "- `loops`: timed 4 of 30 steps within its budget" in text


def test_what_failed_keeps_its_line_and_its_reason() -> None:
    wrong = row(kind="verify", backend="fft", status="incorrect", error="off by 3 | in conv2d")
    crashed = [row(backend="mine", round=number, status="crashed", error="signal 11") for number in range(3)]
    text = table_markdown([*backend("torch", 10.0), wrong, *crashed])
    assert cells(text, "fft")["status"] == "INCORRECT"
    assert cells(text, "fft")["images/s"] == "–"
    label = "lenet/fft/cpu/float32/b128/contiguous/eager/s0"
    assert f"- `{label}`, verify: **incorrect**, off by 3 \\| in conv2d" in text
    assert text.count("signal 11") == 1  # once, not once a round


def test_seeds_are_one_line_with_their_range() -> None:
    text = table_markdown(trained([0.70, 0.80, 0.75], train_seconds=10.0))
    assert cells(text, "im2col")["accuracy"] == "0.750 (0.700–0.800, 3 seeds) after 10 epochs, 10 s"


def test_what_was_tried_again_replaces_what_had_failed() -> None:
    text = table_markdown([row(status="timeout", error="too slow"), *timed([5.0])])
    assert cells(text, "im2col")["status"] == "ok"
    assert "too slow" not in text


def test_the_sample_is_announced_loudly() -> None:
    assert "**This run used the small embedded sample" in table_markdown(
        timed([1.0], dataset="fashion-mnist-sample")
    )
    assert "sample" not in table_markdown(timed([1.0]))


def test_the_sample_says_nothing_of_accuracies_where_nothing_was_trained() -> None:
    assert "accurac" not in table_markdown(timed([1.0], dataset="fashion-mnist-sample"))
    assert "accuracies are lower" in table_markdown(trained([0.7], dataset="fashion-mnist-sample"))


def test_unlike_conditions_have_tables_of_their_own() -> None:
    text = table_markdown([*timed([1.0]), *timed([2.0], batch_size=256), *timed([3.0], mode="compile")])
    assert "## lenet on cpu, float32, batch 128\n" in text
    assert "## lenet on cpu, float32, batch 256\n" in text
    assert "## lenet on cpu, float32, batch 128, compile\n" in text


def test_shares_and_errors_of_verification_are_shown() -> None:
    mine = [row(kind="verify", max_error=3.2e-6), *timed([1.0], served_flops_fraction=0.9999)]
    text = table_markdown([*mine, *timed([1.0], backend="b")])
    assert cells(text, "im2col")["coverage"] == "99.9 %"  # not all of it
    assert cells(text, "im2col")["max error"] == "3.2e-06"
    assert cells(text, "b")["coverage"] == "–"


def test_a_ratio_has_an_interval_from_two_processes_on() -> None:
    times = {"torch": 10.0, "im2col": 40.0}
    rows = [each for name, step_ms in times.items() for each in backend(name, step_ms)[:3]]
    line = next(each for each in comparison_table(rows).groups[0].lines if each.name == "im2col")
    assert line.speedup_interval is not None
    assert line.speedup_interval.low < 0.25 < line.speedup_interval.high
    assert line.speedup_interval.high / line.speedup_interval.low < 1.2
    single = [each for each in rows if each.round == 0]
    assert comparison_table(single).groups[0].lines[1].speedup_interval is None


def test_throughput_step_and_speed_name_one_order_where_medians_name_two() -> None:
    # The arithmetic middles of two processes: native has the higher throughput and the longer step.
    native = [100.0, 1200.0]
    torch = [414.0, 800.0]
    rows = [
        row(
            backend=name,
            round=index,
            step_ms_median=step_ms,
            step_ms_p10=step_ms * 0.99,
            step_ms_p90=step_ms * 1.01,
            images_per_second=128e3 / step_ms,
        )
        for name, times in (("native", native), ("torch", torch))
        for index, step_ms in enumerate(times)
    ]
    (group,) = comparison_table(rows).groups
    first, second = group.lines
    assert [first.name, second.name] == ["native", "torch"]
    assert first.images_per_second is not None
    assert second.images_per_second is not None
    assert first.step_ms == pytest.approx(math.sqrt(100 * 1200))
    assert second.step_ms == pytest.approx(math.sqrt(414 * 800))
    for line in group.lines:
        assert line.images_per_second == pytest.approx(128e3 / (line.step_ms or 0.0))
        assert (line.step_ms_p10 or 0.0) < (line.step_ms or 0.0) < (line.step_ms_p90 or 0.0)
    assert first.speedup == pytest.approx(first.images_per_second / second.images_per_second)
    assert first.speedup_interval is not None
    assert first.speedup_interval.value == pytest.approx(first.speedup)


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        ({"verify": 2, "time": 4, "train": 1}, "**Interrupted: 3 of 7 planned processes are missing.**"),
        ({"time": 2}, None),  # optional rounds come on top
        ({}, None),
        ("many", None),
    ],
)
def test_an_interrupted_run_says_what_is_missing(tmp_path: Path, planned: object, said: str | None) -> None:
    with RunStore.create(tmp_path / "run") as store:
        for each in [row(kind="verify"), *timed([5.0, 5.1, 5.2])]:
            store.append(each)
    (tmp_path / "run" / "environment.json").write_text(json.dumps({"planned_processes": planned}))
    text = table_markdown(tmp_path / "run")
    assert ("Interrupted" in text) == (said is not None)
    assert (said or "") in text
    assert ("`convbench run --resume DIR` completes it" in text) == (said is not None)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    with RunStore.create(tmp_path / "run") as store:
        for each in [*backend("torch", 10.0), *backend("im2col", 40.0)]:
            if each.kind == "time":
                step_ms = [each.step_ms_median or 0.0] * 5
                store.append_samples(samples(step_ms, backend=each.backend, round=each.round))
            store.append(each)
    environment = {"logical_cores": 8, "memory_gb": 31.6, "operating_system": "Debian GNU/Linux 12"}
    (tmp_path / "run" / "environment.json").write_text(json.dumps(environment))
    return tmp_path / "run"


def test_report_writes_the_table_with_machine_and_intervals(run_dir: Path) -> None:
    result = CliRunner().invoke(report, [str(run_dir)])
    assert result.exit_code == 0
    assert result.stdout.split() == [str(run_dir / "table.md"), str(run_dir / "report.html")]

    text = (run_dir / "table.md").read_text()
    assert "- machine: A processor, 8 hardware threads, 32 GB memory, Debian GNU/Linux 12" in text
    assert cells(text, "im2col")["x torch"].startswith("0.250× (")
    assert text == table_markdown(run_dir)


@pytest.mark.parametrize("found", [True, False])
def test_report_opens_its_page(run_dir: Path, monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or found)
    result = CliRunner().invoke(report, [str(run_dir), "--open"])
    assert opened == [(run_dir / "report.html").as_uri()]
    assert ("no browser was found" in result.output) == (not found)
    assert result.exit_code == 0
    CliRunner().invoke(report, [str(run_dir)])
    assert len(opened) == 1


def test_a_damaged_environment_costs_the_machine_alone(run_dir: Path) -> None:
    (run_dir / "environment.json").write_text("{")
    assert "- machine: A processor\n" in table_markdown(run_dir)


def test_report_refuses_what_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError):
            CliRunner().invoke(report, [str(path)], catch_exceptions=False)


def test_nothing_run_is_said() -> None:
    assert "Nothing was run." in table_markdown([])


def test_the_terminal_shows_the_same_lines(run_dir: Path) -> None:
    from rich.console import Console

    text = io.StringIO()
    print_table(Console(file=text, width=200), run_dir)
    for word in ("images/s", "status", "torch", "im2col", "3,200", "0.742 after 10 epochs, 71 s"):
        assert word in text.getvalue()


UNLIKE = [
    *backend(
        "torch", 10.0, max_error=3e-7, served_flops_fraction=1.0, notes="evaluated on 2,000 test images"
    ),
    *backend(
        "im2col", 40.0, max_error=3e-7, served_flops_fraction=1.0, notes="evaluated on 2,000 test images"
    ),
    *backend("acme/direct-conv", 12345.6, served="conv2d 1/2", served_flops_fraction=0.5),
    row(kind="verify", backend="fft", status="incorrect", error="off by 3 in conv2d, forward and gradients"),
    row(kind="verify", backend="cuda", status="unavailable", error="no CUDA device"),
    row(kind="verify", backend="triton", status="unavailable", error="no CUDA device"),
    row(
        kind="verify", backend="winograd", status="unsupported", error="conv2d: kernels of 3x3 only, not 5x5"
    ),
    row(
        backend="winograd", status="unsupported", error="not measured, for its verification ended unsupported"
    ),
]


@pytest.mark.parametrize("width", [160, 100, 80, 60])
def test_the_terminal_breaks_no_word_and_no_line(width: int) -> None:
    from rich.console import Console

    text = io.StringIO()
    print_table(Console(file=text, width=width, color_system=None), UNLIKE)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    narrow = {"backend", "images/s", "status", "12,800", "0.742", "INCORRECT"}
    assert narrow | {"torch", "im2col", "acme/direct-conv", "fft"} <= words
    assert len([line for line in lines if "12,800" in line]) == 1  # a line for each backend
    said = " ".join(text.getvalue().split())
    assert "not run: cuda, triton (no CUDA device); winograd (conv2d: kernels of 3x3 only, not 5x5)" in said
    assert "torch, im2col: evaluated on 2,000 test images" in said
    assert ("no room here for" in said) == (width < 160)


def test_what_cannot_run_is_one_line_and_no_failure() -> None:
    table = comparison_table(UNLIKE)
    assert {line.name for line in table.groups[0].lines}.isdisjoint({"cuda", "triton", "winograd"})
    assert [failure.status for failure in table.failures] == ["incorrect"]
    text = table_markdown(UNLIKE)
    line = "not run: cuda, triton (no CUDA device); winograd (conv2d: kernels of 3x3 only, not 5x5)"
    assert text.splitlines().count(line) == 1
    assert "UNAVAILABLE" not in text


def test_what_cannot_run_on_some_layers_says_on_how_many() -> None:
    rows = [*backend("torch", 10.0), *backend("torch", 10.0, architecture="mlp"), *backend("winograd", 9.0)]
    rows.append(row(backend="winograd", architecture="mlp", status="unsupported", error="3x3 only"))
    assert "\nnot run: winograd in 1 of 2 tables (3x3 only)\n" in table_markdown(rows)


def test_where_nothing_can_run_only_that_is_said() -> None:
    text = table_markdown([row(backend="cuda", status="unavailable", error="no CUDA device")])
    assert "Nothing was run.\n\nnot run: cuda (no CUDA device)\n" in text
    assert "images/s" not in text


def test_only_columns_that_are_shown_are_explained() -> None:
    text = table_markdown(timed([1.0]))
    assert "**images/s**: " in text
    for title in ("shifted", "backward", "accuracy", "max error", "parameters"):
        assert f"**{title}**" not in text
    assert "**accuracy**: " in table_markdown(backend("torch", 10.0))


def test_architectures_on_one_backend_make_one_table() -> None:
    rows = [
        *backend("torch", 10.0, architecture="lenet", parameters=61_706, shifted_val_accuracy=0.61),
        *backend("torch", 2.0, architecture="mlp", parameters=61_225, shifted_val_accuracy=0.42),
    ]
    text = table_markdown(rows)
    assert text.index("| mlp |") < text.index("| lenet |")
    assert cells(text, "lenet")["parameters"] == "61,706"
    assert cells(text, "mlp")["shifted"] == "0.420"
    assert "x torch" not in text.split("**images/s**")[0].split("torch on cpu", 1)[-1]


def test_a_problem_without_accuracy_shows_its_loss() -> None:
    rows = [row(kind="train", seed=seed, val_loss=0.01, epochs=10.0) for seed in range(3)]
    assert cells(table_markdown(rows), "im2col")["final loss"].startswith("0.010 (0.010–0.010, 3 seeds)")


def test_one_cause_is_told_once() -> None:
    rows = [row(kind="verify", seed=seed, status="incorrect", error="off by 3") for seed in range(3)]
    rows += [
        row(
            kind="train",
            seed=seed,
            status="incorrect",
            error="not measured, for its verification ended ...",
        )
        for seed in range(3)
    ]
    listed = table_markdown(rows).partition("## What failed")[2]
    assert listed.count("\n- ") == 1
    assert "and 2 more like it, verify: **incorrect**, off by 3" in listed


def test_flags_are_counted_in_a_sentence() -> None:
    rows = [row(round=0, flags="busy drifting"), row(round=1), row(round=2, flags="busy")]
    (line,) = comparison_table(rows).groups[0].lines
    assert line.remarks == (
        "2 of 3 processes timed while other programs were running (busy)",
        "1 of 3 processes timed with steps that became slower or faster (drifting)",
    )
    assert comparison_table([row(round=0)]).groups[0].lines[0].remarks == ()
    text = table_markdown(rows)
    assert f"- `im2col`: {line.remarks[0]}\n" in text  # as it is, without marks or escapes


def test_notes_that_differ_in_one_number_are_one() -> None:
    def notes(*texts: str) -> dict[str, list[str]]:
        rows = [
            row(backend=f"b{at}", notes=each, images_per_second=9.0 - at) for at, each in enumerate(texts)
        ]
        return notes_of(comparison_table(rows).groups[0])

    assert notes("timed 4 of 30 steps", "timed 1,200 of 30 steps", "timed 4 of 30 steps") == {
        "timed 4 to 1,200 of 30 steps": ["b0", "b1", "b2"]
    }
    assert notes("1 min 35 s were left", "4 min 42 s were left") == {
        "1 min 35 s were left": ["b0"],
        "4 min 42 s were left": ["b1"],
    }
    assert len(notes("kernels of 3x3", "kernels of 5x5")) == 2
    assert len(notes("conv2d", "conv3d")) == 2
    assert notes("3 of 3", "3 of 4") == {"3 of 3 to 4": ["b0", "b1"]}
