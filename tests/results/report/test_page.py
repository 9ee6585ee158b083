"""report.html, as text: what it says, that it escapes what it was given, and that it needs nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from convbench.registry import UsageError
from convbench.results import Row, compare
from convbench.results.cli.compare import compare as compare_command
from convbench.results.cli.report import report
from convbench.results.report.page import comparison_html
from convbench.results.report.write import write_all
from result_rows import row, timed, trained, write
from synthetic_run import STEP_MS, synthetic_run

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "input", "br", "img", "link", "base"}


class Page(HTMLParser):
    """A page taken apart: its tables by name, its text, its tags; fails where tags are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.parts: list[str] = []
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables[dict(attrs)["id"] or ""] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.parts.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self._rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def page(path: Path) -> Page:
    return Page(write_all(path)[1].read_text(encoding="utf-8"))


def rows_only(directory: Path, rows: list[Row]) -> Path:
    write(directory / "results.csv", rows)
    return directory


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return synthetic_run(tmp_path / "run", seeds=2)


def test_the_summary_says_who_is_fastest_by_how_much_and_how_sure(run_dir: Path) -> None:
    text = page(run_dir).text
    assert "<Macro" not in text
    assert "torch is clearly fastest: " in text
    interval = r"\(95 % interval 2\.\d\d to 2\.\d\d\)"
    assert re.search(rf"It is 2\.\d\d times as fast {interval} as im2col, the next\.", text)
    assert re.search(r"It is 1\d\d times as fast \(95 % interval .*?\) as loops, the slowest\.", text)
    assert "Each was timed in 3 fresh processes." in text


def test_the_summary_owns_up_to_what_it_cannot_tell(tmp_path: Path) -> None:
    alike = page(synthetic_run(tmp_path / "alike", {"torch": 10.0, "fft": 10.1})).text
    assert "but this data cannot tell it from" in alike
    assert "clearly" not in alike
    single = page(synthetic_run(tmp_path / "single", {"torch": 10.0, "fft": 12.0}, processes=1)).text
    assert "cannot tell it from fft" in single
    assert "one process, which says nothing of the spread" in single


def test_words_and_table_give_the_same_numbers(run_dir: Path) -> None:
    found = page(run_dir)
    results = found.tables["results"]
    line = next(cells for cells in results if cells[0] == "im2col")
    ratio = float(line[results[0].index("x torch")].rstrip("×"))
    low, high = map(float, line[results[0].index("its 95 % interval")].split("–"))
    said = re.search(
        r"It is ([\d.]+) times as fast \(95 % interval ([\d.]+) to ([\d.]+)\) as im2col", found.text
    )
    assert said is not None
    for shown, expected in zip(said.groups(), (1 / ratio, 1 / high, 1 / low), strict=True):
        assert float(shown) == pytest.approx(expected, rel=0.005)


def test_networks_without_ops_to_serve_have_no_winner(tmp_path: Path) -> None:
    rows = [row(kind="verify", backend=name, architecture="mlp") for name in ("torch", "fft")]
    rows += timed([1.0, 1.0, 1.0], backend="torch", architecture="mlp", images_per_second=128e3)
    rows += timed([9.0, 9.0, 9.0], backend="fft", architecture="mlp", images_per_second=14e3)
    text = page(rows_only(tmp_path, rows)).text
    assert "No layer of mlp uses an op that backends implement" in text
    assert "clearly" not in text


def test_who_left_convolutions_to_torch_never_wins_unless_asked_for(tmp_path: Path) -> None:
    rows = timed([9.0, 9.0, 9.0], backend="torch", images_per_second=128e3 / 9)
    rows += timed([30.0, 30.1, 30.0], backend="im2col", images_per_second=4e3)
    rows += timed([1.0, 1.0, 1.0], backend="fft", images_per_second=128e3, served="conv2d 1/2")
    path = rows_only(tmp_path, rows)
    text = page(path).text
    assert "torch is clearly fastest: 14,222 images/s" in text
    left = "fft (128,000 images/s; torch computed 1 of 2 calls of conv2d)"
    assert f"Not ranked, because they left work to torch: {left}." in text
    assert "PARTLY: conv2d 50.0 %" in text

    everybody = Page(write_all(path, rank="all")[1].read_text(encoding="utf-8")).text
    assert "fft is clearly fastest: 128,000 images/s" in everybody
    assert "PARTLY: conv2d 50.0 %" in everybody


def test_where_nobody_served_the_convolutions_nobody_wins(tmp_path: Path) -> None:
    rows = timed([1.0, 1.0, 1.0], backend="fft", images_per_second=128e3, served_flops_fraction=0.3)
    text = page(rows_only(tmp_path, rows)).text
    assert "None of those that were timed is ranked." in text
    assert "fft (128,000 images/s; torch computed 70 % of the FLOPs)" in text


def test_what_torch_did_for_the_fastest_is_told(tmp_path: Path) -> None:
    rows = timed([9.0, 9.0, 9.0], backend="torch", images_per_second=128e3 / 9)
    share = {"served": "conv2d 2/2, max_pool2d 0/2", "served_flops_fraction": 0.9}
    rows += timed([1.0, 1.01, 1.0], backend="fft", images_per_second=128e3, **share)
    assert "fft computed 90.0 % of the FLOPs itself" in page(rows_only(tmp_path, rows)).text


def test_the_roofline_is_drawn_told_and_tabled(run_dir: Path) -> None:
    found = page(run_dir)
    assert "cpu was measured to do at most 100 GFLOP/s in float32 and to copy 20.0 GB/s" in found.text
    assert "below 5 FLOPs per byte, memory is the limit" in found.text
    assert re.search(
        r"lenet does 4 FLOPs per byte, so memory limits it to 80\.0 GFLOP/s; torch came nearest, with "
        r"3\d\.\d GFLOP/s, 3\d\.\d % of its roof\.",
        found.text,
    )
    chart = next(
        a["aria-label"] or ""
        for _, a in found.tags
        if "Roofline" in (a.get("aria-label") or "") and "role" in a
    )
    assert "float32 at most 100 GFLOP/s and 20 GB/s, which meet at 5 FLOPs per byte" in chart
    assert all(f"{name}, lenet on cpu" in chart for name in STEP_MS)
    headings, line = found.tables["results"][:2]
    assert line[headings.index("FLOPs per byte")] == "4"
    assert 30 < float(line[headings.index("of the roofline")].rstrip(" %")) < 45
    assert found.tables["peaks"][1] == ["cpu", "float32", "100", "20.0", "5"]


@pytest.mark.parametrize(
    "peaks",
    [
        None,
        7,
        {"cpu": None},
        {"cpu": {"float32": 3}},
        {"cpu": {"float32": {"gflops_per_second": "many", "gb_per_second": 0}}},
        {"cuda": {"float32": {"gflops_per_second": 1.0, "gb_per_second": 1.0}}},
    ],
    ids=str,
)
def test_without_peaks_there_is_no_roof(run_dir: Path, peaks: object) -> None:
    (run_dir / "environment.json").write_text(json.dumps({"peaks": peaks}), encoding="utf-8")
    found = page(run_dir)
    assert "The peaks of cpu with float32 were not measured, so it has no roof here." in found.text
    assert "Roofline of" not in found.text
    assert "of the roofline" not in found.tables["results"][0]


def test_a_run_of_before_rooflines_says_nothing_of_them(tmp_path: Path) -> None:
    found = page(rows_only(tmp_path, timed([1.0], images_per_second=1e3, gflops_per_second=2.0)))
    assert not [a for _, a in found.tags if a.get("href") == "#roof"]


def test_a_speed_above_the_roof_is_explained(tmp_path: Path) -> None:
    rows = timed([1.0], images_per_second=1e3, arithmetic_intensity=1.0, gflops_per_second=30.0)
    directory = rows_only(tmp_path, [row(kind="verify", served="conv2d 1/1"), *rows])
    peaks = {"cpu": {"float32": {"gflops_per_second": 100, "gb_per_second": 20}}}
    (directory / "environment.json").write_text(json.dumps({"peaks": peaks}))
    assert "150 % of its roof; that is beyond it, for what stays in caches" in page(directory).text


def test_flags_are_shown_and_told(run_dir: Path) -> None:
    assert "flags" not in page(run_dir).tables["results"][0]
    more = [
        row(round=each, step_ms_median=5.0, flags="busy throttled"[: 14 if each else 4]) for each in (0, 1)
    ]
    found = page(synthetic_run(run_dir, {"torch": 1.0}, more=more))
    headings, *lines = found.tables["results"]
    assert {line[0]: line[headings.index("flags")] for line in lines} == {
        "torch": "–",
        "im2col": "busy (2 of 2), throttled (1 of 2)",
    }
    assert (
        "2 processes of 7 ran while other programs were running (busy); treat these times with care"
        in found.text
    )
    assert "1 process of 7 ran while the device or the process was slowed down (throttled)" in found.text


def test_what_was_served_is_told_op_by_op(tmp_path: Path) -> None:
    rows = timed(
        [1.0],
        backend="fft",
        images_per_second=1e3,
        served="conv2d 1/2, max_pool2d 0/3",
        served_flops="conv2d 0.85, max_pool2d 0",
        served_flops_fraction=0.84,
        supported_ops="conv2d",
        derived_backward="conv2d",
    )
    headings, line = page(rows_only(tmp_path, [row(kind="verify", backend="fft"), *rows])).tables["served"]
    told = dict(zip(headings, line, strict=True))
    assert told["conv2d"] == "1 of 2 (85.0 % of FLOPs)"
    assert told["max_pool2d"] == "0 of 3"
    assert told["claims"] == told["derived backward"] == "conv2d"
    assert told["share of FLOPs"].strip() == "84.0 %"


def test_every_column_of_the_results_is_explained(run_dir: Path) -> None:
    html = write_all(run_dir)[1].read_text(encoding="utf-8")
    terms = re.findall(r"<dt>(.*?)</dt>", html.partition('class="terms"')[2].partition("</dl>")[0])
    assert terms == Page(html).tables["results"][0][1:]  # all but the name of the line


def test_long_names_are_shortened_in_charts_and_stay_two(tmp_path: Path) -> None:
    names = [f"a_backend_of_more_letters_than_fit_{number}_beside_a_chart" for number in (1, 2)]
    run = synthetic_run(tmp_path / "long", {**dict.fromkeys(names, 1.0), "torch": 2.0})
    found = page(run)
    assert {"a_backend_o…de_a_chart", "a_backend_o…de_a_chart (2)"} <= set(found.parts)
    chart = next(a["aria-label"] or "" for _, a in found.tags if "throughput" in (a.get("aria-label") or ""))
    assert all(f"{name}: " in chart for name in names)


def test_curves_that_lie_on_each_other_are_drawn_once(run_dir: Path) -> None:
    assert (
        "torch and 2 more" in page(run_dir).parts
    )  # their losses are the same; the budget cut that of loops


def test_only_finished_trainings_have_an_accuracy(run_dir: Path) -> None:
    found = page(run_dir)
    headings, *lines = found.tables["results"]
    accuracies = {line[0]: line[headings.index("accuracy")] for line in lines}
    assert accuracies.pop("loops") == "–"
    assert all(accuracy.startswith(("0.8", "0.9")) for accuracy in accuracies.values())
    assert "The budget ended 1 of 4 trainings before the last epoch, so their accuracy is not" in found.text


def test_the_verdict_comes_first_then_the_warnings_then_the_conditions(run_dir: Path) -> None:
    text = page(
        synthetic_run(run_dir, more=[row(machine_id="m2", flags="busy", backend="torch", round=9)])
    ).text
    verdict, warning = text.index("torch"), text.index("Warning:")
    assert text.index("clearly fastest") < warning < text.index("processes for")
    assert verdict < warning < text.index("data set")
    assert text.count("Warning:") == 1
    assert "(1 more)" in text


def test_every_row_is_accounted_for(run_dir: Path) -> None:
    found = page(run_dir)
    # 4 backends: a verification, 3 timings and 2 trainings each
    assert len(found.tables["rows"]) == 1 + 4 * 6
    assert "24 processes for 8 combinations of lenet and 4 backends on cpu" in found.text
    assert "22 ok, 2 cut by the budget." in found.text
    assert [cells[0] for cells in found.tables["results"][1:]] == list(STEP_MS)
    assert len(found.tables["served"]) == 1 + 4


def test_what_did_not_run_is_told_with_its_reason(run_dir: Path) -> None:
    failed = [row(kind="verify", backend="winograd", status="unsupported", error="3x3 kernels only, got 5x5")]
    failed += [
        row(
            kind="time",
            backend="winograd",
            status="unsupported",
            error="not measured, for its verification ...",
        )
    ]
    found = page(synthetic_run(run_dir, more=failed))
    assert "failures" not in found.tables
    assert "What did not run" in found.text
    assert "not run: winograd (3x3 kernels only, got 5x5)." in found.text
    assert "1 combination could not be measured." in found.text


def test_failures_alone_make_a_report(tmp_path: Path) -> None:
    rows = [row(kind=kind, status="crashed", error="signal 11") for kind in ("verify", "time", "train")]
    found = page(rows_only(tmp_path, rows))
    assert "3 crashed" in found.text
    assert "Nothing was timed here." in found.text
    assert len(found.tables["failures"]) == 4


@pytest.mark.parametrize("rows", [[], timed([1.0]), trained([0.5]), [row(kind="verify")]], ids=len)
def test_a_run_of_little_makes_a_report(rows: list[Row], tmp_path: Path) -> None:
    found = page(rows_only(tmp_path, rows))
    assert len(found.tables.get("rows", [[]])) == 1 + len(rows)
    assert ("Nothing was run." in found.text) == (not rows)


def test_numbers_that_are_none_do_no_harm(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    rows = [
        *timed([nan, infinite, 0.0], images_per_second=nan, forward_ms=nan),
        *timed([1.0], backend="torch", images_per_second=infinite, forward_ms=-1.0),
        row(kind="train", status="diverged", val_loss=nan, error="the loss is nan"),
        row(kind="train", backend="torch", val_accuracy=nan, train_seconds=infinite),
    ]
    assert len(page(rows_only(tmp_path, rows)).tables["rows"]) == 7


def test_two_thousand_rows_make_a_report(tmp_path: Path) -> None:
    rows: list[Row] = []
    for number in range(500):
        speed = 1e3 / (1 + number)
        rows += timed([1.0 + number, 1.1 + number], backend=f"b{number:03}", images_per_second=speed)
    rows += trained([0.5] * 500) + trained([0.5] * 500, backend="b007")
    found = page(rows_only(tmp_path, rows))
    assert len(found.tables["rows"]) == 2001
    assert "the first 24 of 501 backends" in found.text


def test_names_and_errors_are_escaped(tmp_path: Path) -> None:
    rows = [
        *timed(
            [1.0], backend=HOSTILE, images_per_second=1.0, notes=HOSTILE, device_name=HOSTILE, recipe=HOSTILE
        ),
        *trained([0.5], backend=HOSTILE, train_seconds=1.0),
        row(backend='" onload="x', status="crashed", error="</td></table><img src=x onerror=alert(1)>\u202e"),
    ]
    directory = rows_only(tmp_path, rows)
    (directory / "environment.json").write_text(
        '{"cpu_model": "</dd><script>x</script>", "torch_build": "</pre><script>x</script>\\u0000\\ud800"}'
    )
    (directory / "suite.toml").write_text('description = "</pre><script>x</script>"')
    found = page(directory)
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not [tag for tag, _ in found.tags if tag in ("img", "iframe", "object", "base")]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in found.text


def test_a_page_needs_nothing_else(run_dir: Path) -> None:
    html = write_all(run_dir)[1].read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"(?m)^\s*//.*$", "", html))
    for tag, attributes in Page(html).tags:
        assert tag != "link"
        assert attributes.get("src") is None
        assert (attributes.get("href") or "#").startswith("#")
    found = [
        a["content"] or "" for _, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert [policy.partition(";")[0] for policy in found] == ["default-src 'none'"]


def test_links_lead_somewhere_and_charts_have_words(run_dir: Path) -> None:
    tags = page(run_dir).tags
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in tags:
        for reference in ("href", "aria-labelledby"):
            if target := attributes.get(reference):
                assert target.lstrip("#") in names
    images = [attributes for tag, attributes in tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(images) == 6
    assert all(image["role"] == "img" and len(image["aria-label"] or "") > 40 for image in images)


def test_the_page_does_without_torch(run_dir: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from convbench.results.report.write import write_all\n"
        f"write_all({str(run_dir)!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (run_dir / "report.html").stat().st_size > 50_000


def test_the_command_writes_table_report_and_plots(run_dir: Path) -> None:
    ended = CliRunner().invoke(report, [str(run_dir), "--plots"], catch_exceptions=False)
    paths = [Path(line) for line in ended.output.splitlines()]
    assert {path.name for path in paths} >= {"table.md", "report.html"}
    plots = [path for path in paths if path.parent.name == "plots"]
    assert len(plots) == 12  # each as PNG and as SVG
    assert all(path.stat().st_size > 1000 for path in plots)
    assert "plots/lenet-on-cpu-float32-batch-128-step-times.png" in ended.output
    assert "plots/roofline-of-cpu.svg" in ended.output


def test_plots_take_any_name(tmp_path: Path) -> None:
    names = {"$x^{$": 1.0, "_hidden": 2.0, HOSTILE: 3.0, "../up": 4.0, "卷积": 5.0}
    run = synthetic_run(tmp_path / "run", names, architectures=("../../up/$a_{",), steps=3)
    assert CliRunner().invoke(report, [str(run), "--plots"], catch_exceptions=False).exit_code == 0
    assert {path.parent for path in tmp_path.rglob("*.svg")} == {run / "plots"}


def test_no_plot_overwrites_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl_convert.vegalite_to_png", lambda spec, scale: b"png")
    monkeypatch.setattr("vl_convert.vegalite_to_svg", lambda spec: "svg")
    networks = ("n" * 100, "n" * 101, "a b", "a-b")
    run = synthetic_run(tmp_path / "run", {"torch": 1.0, "im2col": 2.0}, architectures=networks, steps=3)
    ended = CliRunner().invoke(report, [str(run), "--plots"], catch_exceptions=False)
    plots = [line for line in ended.output.splitlines() if "/plots/" in line]
    assert len(set(plots)) == len(plots) == len(list((run / "plots").iterdir()))
    assert any(line.endswith("against-seconds-2.svg") for line in plots)


def test_plots_rank_as_the_report_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        "convbench.results.charts.run_charts.write_plots", lambda _, *, rank: asked.append(rank) or []
    )
    run = synthetic_run(tmp_path / "run", steps=3)
    for options in ([], ["--rank", "all"]):
        CliRunner().invoke(report, [str(run), "--plots", *options], catch_exceptions=False)
    assert asked == ["served", "all"]


def test_names_bring_no_control_characters_and_turn_no_text_around(tmp_path: Path) -> None:
    name = "a\x07\x9bb\u202ec"
    run = synthetic_run(tmp_path / "run", {"torch": 10.0, name: 20.0}, architectures=("lenet", "vgg"))
    html = write_all(run)[1].read_text(encoding="utf-8")
    page, compared = Page(html), comparison_html(compare(run, run))
    for text in (html, compared):
        assert not set(text) & {*name[1:3], name[4]}
    choices = [attributes["data-choices"] for tag, attributes in page.tags if attributes.get("data-choices")]
    (backends,) = [each for each in map(json.loads, choices) if "torch" in each][:1]
    assert set(backends) == {"torch", "a  b c"}  # what the cells show, so that the filter finds them
    assert "a  b c" in page.tables["results"][1] + page.tables["results"][2]


def test_a_report_that_cannot_be_written_is_an_error(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "report.html").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*report\.html"):
        write_all(run_dir)
    assert (run_dir / "table.md").exists()
    with pytest.raises(UsageError, match="is not a run directory"):
        write_all(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=f"results.csv is not a run directory; {run_dir} is one"):
        write_all(run_dir / "results.csv")


def test_a_comparison_is_a_page_too(tmp_path: Path) -> None:
    base = synthetic_run(tmp_path / "base", seeds=3)
    slow = {name: value * (1.5 if name == "fft" else 1.0) for name, value in STEP_MS.items()}
    new = synthetic_run(tmp_path / "new", slow | {HOSTILE: 1.0}, seeds=3)
    target = tmp_path / "comparison.html"
    arguments = [str(base), str(new), "--html", str(target)]
    assert CliRunner().invoke(compare_command, arguments, catch_exceptions=False).exit_code == 0
    html = target.read_text(encoding="utf-8")
    found = Page(html)
    assert "4 pairs of step time: 3 unclear and 1 slower." in found.text  # three processes show no less
    assert "The largest slow-down: lenet/fft/cpu/float32/b128/contiguous/eager/s0, 50.0% slower" in found.text
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert len(found.tables["section-0"]) == 5
    assert "n counts processes" in found.text
    assert "fft: 1.500, slower;" in html  # what all pairs share is left out
    assert [cells[0] for cells in found.tables["section-0"][1:]] == [f"lenet/{each}" for each in STEP_MS]
    assert "All of these are of cpu, float32, b128, contiguous, eager, s0." in found.text
    assert HOSTILE in found.text
    forced = Page(comparison_html(compare(base, unlike(new), force=True)))
    assert "Warning: of every pair here: unlike dataset (fashion-mnist and another)." in forced.text
    assert not [cells for cells in forced.tables["section-0"] if "unlike" in "".join(cells)]
    history = Page(comparison_html(compare(base, new, base)))
    assert sum(tag == "svg" and "aria-hidden" not in attributes for tag, attributes in history.tags) == 2


def unlike(run: Path) -> Path:
    """The same run, on another data set."""
    path = run / "results.csv"
    path.write_text(
        path.read_text(encoding="utf-8").replace(",fashion-mnist,", ",another,"), encoding="utf-8"
    )
    return run
