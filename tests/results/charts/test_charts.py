"""The charts by themselves, as a notebook has them: what is on them, in which colours, and under which names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import vl_convert

from convbench.registry import UsageError
from convbench.results import Row, compare
from convbench.results.analysis.contents import read_contents
from convbench.results.charts import plot_comparison, plot_run
from convbench.results.charts.charts import INK, curves, ratio_forest, speed_bars
from convbench.results.charts.render import ON_WHITE, figure
from convbench.results.charts.run_charts import group_charts, overview, write_plots
from result_rows import row, timed
from synthetic_run import STEP_MS, synthetic_run


def records(chart: Any) -> list[dict[str, Any]]:
    """All data of a chart."""
    return [each for rows in chart.to_dict()["datasets"].values() for each in rows]


def bars(speeds: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": name,
            "role": "torch" if name == "torch" else "other",
            "label": f"{name}: {speed}",
            "images_per_second": speed,
            "low": float("nan"),
            "high": float("nan"),
            "text": str(speed),
        }
        for name, speed in speeds.items()
    )


def test_slow_ones_get_a_logarithmic_axis() -> None:
    def scale(speeds: dict[str, float]) -> str:
        return str(speed_bars(bars(speeds), "speed").to_dict()["layer"][0]["encoding"]["x"]["scale"]["type"])

    assert scale({"torch": 100.0, "fft": 30.0}) == "linear"
    assert scale({"torch": 100.0, "loops": 1.0}) == "log"


def test_torch_and_the_fastest_stand_out_and_the_ratio_is_written(tmp_path: Path) -> None:
    contents = read_contents(synthetic_run(tmp_path / "run", {**STEP_MS, "mine": 5.0}))
    (group,) = contents.table.groups
    speed = group_charts(contents, group, brief=True)[0]
    roles = {each["name"]: each["role"] for each in records(speed) if "name" in each}
    assert roles == {
        "mine": "fastest",
        "torch": "torch",
        **dict.fromkeys(("im2col", "fft", "loops"), "other"),
    }
    texts = {each["name"]: each["text"] for each in records(speed) if "name" in each}
    assert texts["mine"].endswith("×")
    assert "×" not in texts["torch"]


def test_curves_that_differ_are_drawn_apart() -> None:
    def names(shift: float) -> set[str]:
        frame = pd.DataFrame(
            {"name": name, "role": role, "label": name, "series": 0, "x": float(x), "y": x * (1 + more)}
            for name, role, more in (("im2col", "other", 0.0), ("torch", "torch", shift))
            for x in range(1, 6)
        )
        return {each["name"] for each in records(curves(frame, "c", ("x", "x"), ("y", "y")))}

    assert names(1e-9) == {"torch and im2col"}
    assert names(0.2) == {"torch", "im2col"}


def test_an_interval_of_two_processes_does_not_squeeze_the_others() -> None:
    frame = pd.DataFrame(
        {"name": n, "role": "other", "label": n, "ratio": r, "low": r / far, "high": r * far, "text": "1"}
        for n, r, far in (("a", 1.0, 1.1), ("b", 1.1, 1e9))
    )
    domain = ratio_forest(frame, "t", "ratio").to_dict()["layer"][2]["encoding"]["x"]["scale"]["domain"]
    assert domain[1] < 1e4


def test_many_networks_get_an_overview(tmp_path: Path) -> None:
    networks = ("lenet", "alexnet", "vgg")
    contents = read_contents(synthetic_run(tmp_path / "run", architectures=networks))
    chart = overview(contents.table)
    assert chart is not None
    assert {each["name"] for each in records(chart) if "name" in each} == set(networks)
    assert overview(read_contents(synthetic_run(tmp_path / "one")).table) is None


def test_a_chart_on_a_page_has_words_and_the_colours_of_the_page(tmp_path: Path) -> None:
    hostile = '<b onclick="x">&'
    drawn = figure(speed_bars(bars({"torch": 2.0, hostile: 1.0}), "Speed", "a note"))
    assert (drawn.title, drawn.note) == ("Speed", "a note")
    assert 'role="img" aria-label="Speed. a note: torch: 2.0; &lt;b onclick=' in drawn.svg
    assert "<b" not in drawn.svg
    assert 'fill="var(--blue)"' in drawn.svg
    assert "#" not in drawn.svg.replace("&#", "")
    assert "http" not in drawn.svg
    assert drawn.svg.count('class="point"') == 2


def test_a_notebook_plots_a_run_and_a_comparison(tmp_path: Path) -> None:
    base, new = synthetic_run(tmp_path / "base"), synthetic_run(tmp_path / "new", {**STEP_MS, "fft": 90.0})
    run = plot_run(read_contents(base).rows).to_dict()
    assert [each["title"]["text"] for each in run["vconcat"]][:1] == ["Training throughput"]
    ratios = plot_comparison(compare(base, new)).to_dict()
    assert [each["title"]["text"] for each in ratios["vconcat"]] == ["Step time, new over base"]
    (path, *_) = write_plots(base)
    written = path.with_suffix(".svg").read_text(encoding="utf-8")
    for drawn in (run, ratios):
        assert drawn["config"] == ON_WHITE | {"view": drawn["config"]["view"] | ON_WHITE["view"]}
        svg = vl_convert.vegalite_to_svg(drawn)
        for look in (f'fill="{INK}"', 'font-family="sans-serif"', 'fill="white"'):
            assert look in svg
            assert look in written


@pytest.mark.parametrize("rows", [[], [row(kind="verify")]], ids=len)
def test_nothing_to_draw_is_said(rows: list[Row]) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        plot_run(rows)


@pytest.mark.parametrize(("step_ms", "has_one"), [([1.0], False), ([1.0, 1.1], True)])
def test_an_interval_needs_two_processes(step_ms: list[float], has_one: bool) -> None:
    chart = plot_run([*timed(step_ms, images_per_second=1e3)])
    assert ("interval" in str(chart.to_dict()["vconcat"][0]["title"])) is has_one
