"""Speed of several processes beside that of one: which lines are compared, and what is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convbench.results.analysis.scaling import Scaling, scaling
from convbench.results.analysis.standings import comparison_table
from convbench.results.report.write import write_all
from convbench.results.schema import Row
from convbench.results.storage.store import RunStore
from result_rows import row


def timed(batch: int, size: int, step_ms: float, **values: Any) -> Row:
    together = {"allreduce_ms": step_ms / 4} if size > 1 else {}
    return row(
        kind="time", backend="torch", batch_size=batch, world_size=size, step_ms_median=step_ms,
        images_per_second=1000 * batch / step_ms, **together, **values,
    )  # fmt: skip


ROWS = [timed(64, 1, 10.0), timed(128, 1, 20.0), timed(128, 2, 16.0), timed(64, 4, 5.0)]


def found(rows: list[Row]) -> dict[tuple[str, int, int], Scaling]:
    return {
        (each.kind, each.line.batch_size, each.line.world_size): each
        for each in scaling(comparison_table(rows).lines)
    }


def test_strong_scaling_divides_a_batch_and_weak_scaling_has_one_for_each() -> None:
    each = found(ROWS)
    assert list(each) == [("strong", 64, 4), ("strong", 128, 2), ("weak", 128, 2)]
    assert each["strong", 64, 4].speedup == pytest.approx(2.0)
    assert each["strong", 128, 2].speedup == pytest.approx(1.25)
    assert each["weak", 128, 2].speedup == pytest.approx(1.25)
    assert each["weak", 128, 2].allreduce_share == pytest.approx(0.25)


def test_processes_share_the_cores_of_a_cpu_and_each_has_a_gpu_of_its_own() -> None:
    on_gpu = [timed(128, size, ms, device="cuda:0") for size, ms in ((1, 20.0), (2, 12.5))]
    assert found(ROWS)["strong", 128, 2].efficiency == pytest.approx(1.25)
    assert found(on_gpu)["strong", 128, 2].efficiency == pytest.approx(0.8)


def test_without_a_line_of_one_process_nothing_is_compared() -> None:
    assert found([timed(128, 2, 16.0)]) == {}
    assert found([timed(64, 1, 10.0), timed(128, 1, 20.0)]) == {}


def test_the_page_and_the_table_show_it(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run") as store:
        for each in ROWS:
            store.append(each)
    table, page = (path.read_text() for path in write_all(tmp_path / "run"))
    assert "| weak | lenet | torch | cpu | 2 | 128 | 8,000 | 1.25× | 125 % | 25.0 % |" in table
    assert "Weak scaling on cpu" in page
    assert "ideal" in page
