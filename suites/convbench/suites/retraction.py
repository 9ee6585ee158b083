"""Take back what was measured of a combination that turned out wrong: its rows stay, without figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convbench.results.schema import MEASURED, Row
from convbench.results.store import RunStore

# of a timing or a training; what else a row has is true all the same
FIGURES = (
    "epochs",
    "steps",
    "train_seconds",
    "images_per_second",
    "step_ms_median",
    "step_ms_p10",
    "step_ms_p90",
    "forward_ms",
    "backward_ms",
    "optimizer_ms",
    "data_ms",
    "host_ms",
    "cold_step_ms",
    "setup_seconds",
    "compile_seconds",
    "train_loss",
    "val_loss",
    "val_accuracy",
    "best_val_accuracy",
    "shifted_val_accuracy",
    "peak_memory_mb",
    "gflops_per_second",
    "roofline_fraction",
)


def without_figures(row: Row, **changes: Any) -> Row:
    """The row with no speed and no accuracy."""
    nothing: dict[str, Any] = dict.fromkeys(FIGURES)
    return replace(row, **nothing, **changes)


def retract(store: RunStore, reason: str, wrong: Row) -> None:
    """Withdraw every timing and training of a wrong row's combination, with their samples and curves."""
    rows = [
        without_figures(row, status="incorrect", error=reason)
        if row.combination == wrong.combination and row.kind != "verify" and row.status in MEASURED
        else row
        for row in store.rows()
    ]
    store.withdraw(rows, wrong)
