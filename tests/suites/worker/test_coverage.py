"""Whose work a speed is: what a backend served, op by op, in rows, tables and rankings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convbench.registry import Backend, Unsupported, create_model, derived_backward, discover, use_backend
from convbench.registry.ops.window import conv2d_window
from convbench.registry.routing.dispatch import Routed
from convbench.results import Row, comparison_table, table_markdown
from convbench.results.analysis.coverage import Attribution, Share, attribution
from convbench.results.tables.comparison_table import print_table
from convbench.suites.worker.jobs import claims, shares
from result_rows import row, timed

pytestmark = pytest.mark.usefixtures("preloaded_servers")

REGISTRY = discover()
OWN = [
    name
    for name, record in REGISTRY.architectures.items()
    if record.problem is None
    and REGISTRY.architectures.plugin(name).distribution == "convbench"
    and "/" not in name
]


def picky(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any) -> Tensor:
    """3x3 convolutions of stride 1, as winograd has them."""
    window = conv2d_window(input, weight, bias, *args)
    if window.kernel_size != (3, 3) or window.stride != (1, 1):
        raise Unsupported("3x3 and stride 1 only")
    return F.conv2d(input, weight, bias, *args)


PICKY = Backend("picky", "for these tests", lambda: {"conv2d": picky, "avg_pool2d": F.avg_pool2d})


def is_served(layer: nn.Conv2d) -> bool:
    return tuple(layer.kernel_size) == (3, 3) and tuple(layer.stride) == (1, 1)


@pytest.mark.parametrize("name", OWN)
def test_shares_are_those_of_an_independent_count(name: str) -> None:
    """torch's own counter, layer by layer, on every network of ours; without numbers, so that it is quick."""
    shape = REGISTRY.architecture(name).input_shape
    with torch.device("meta"):
        model = REGISTRY.architecture(name).build().eval()
        images = torch.empty(2, *shape)
    counted: dict[nn.Conv2d, tuple[int, int]] = {}

    def count(layer: nn.Conv2d, arguments: tuple[Tensor], output: Tensor) -> None:
        with FlopCounterMode(display=False) as counter:
            F.conv2d(
                arguments[0], layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        calls, flops = counted.get(layer, (0, 0))
        counted[layer] = (calls + 1, flops + counter.get_total_flops())

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[arg-type]
    model(images)
    for hook in hooks:
        hook.remove()

    routed = use_backend(model, PICKY)
    routed(images)
    tally = routed.tallies["conv2d"]
    served = [counts for layer, counts in counted.items() if is_served(layer)]
    assert tally.calls == sum(calls for calls, _ in counted.values())
    assert tally.flops == sum(flops for _, flops in counted.values())
    assert tally.served_calls == sum(calls for calls, _ in served)
    assert tally.served_flops == sum(flops for _, flops in served)


def test_winograd_on_resnet18_is_attributed_op_by_op() -> None:
    routed = use_backend(create_model("resnet18"), "winograd")
    with torch.no_grad():
        routed(torch.rand(1, 1, 64, 64))
    convolutions = [m for m in routed.model.modules() if isinstance(m, nn.Conv2d)]
    told = shares(routed)
    assert told["served"].startswith(f"conv2d {sum(map(is_served, convolutions))}/{len(convolutions)}, ")
    assert told["served_calls"] == sum(map(is_served, convolutions))
    ops = {op: float(share) for op, share in (each.split() for each in told["served_flops"].split(", "))}
    tallies = {name: tally for name, tally in routed.tallies.items() if tally.calls}
    assert ops.keys() == tallies.keys()
    assert 0.5 < ops["conv2d"] < 1
    whole = sum(tally.flops for tally in tallies.values())
    assert told["served_flops_fraction"] == pytest.approx(
        sum(ops[name] * tally.flops for name, tally in tallies.items()) / whole
    )
    read = attribution([row(kind="verify", supported_ops="conv2d", **told)])
    assert [share.op for share in read.partial] == ["conv2d"]
    assert not read.whole


def routed_lenet(op: Any) -> Routed:
    return use_backend(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), Backend("b", "", lambda: {"conv2d": op})
    )


def test_the_calls_of_a_row_are_those_of_one_pass_however_many_were_made() -> None:
    routed = routed_lenet(F.conv2d)
    assert shares(routed) == {}  # nothing was counted
    for _ in range(3):
        routed(torch.rand(1, 1, 8, 8))
    assert routed.passes == 3
    assert shares(routed)["served"] == "conv2d 2/2"
    assert shares(routed)["served_calls"] == 2
    routed.reset_counts()
    assert shares(routed) == {}


def test_a_backend_that_refuses_later_is_found_out() -> None:
    calls = []

    def tires(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise Unsupported("no more")
        return F.conv2d(*arguments)

    routed = routed_lenet(tires)
    for _ in range(3):
        routed(torch.rand(1, 1, 8, 8))
    told = shares(routed)
    assert told["served"] == "conv2d 4/6"
    assert told["served_flops_fraction"] == pytest.approx(2 / 3)
    verified = row(kind="verify", served="conv2d 2/2", served_flops="conv2d 1", supported_ops="conv2d")
    assert not attribution([verified, row(**told)]).whole


def test_a_compiled_model_counts_nothing() -> None:
    assert shares(nn.Linear(1, 1)) == {}


def test_what_a_backend_claims_and_whose_backward_is_derived_is_told() -> None:
    def forward(
        input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
    ) -> Any:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    derived = Backend("d", "", lambda: {"max_pool2d": F.max_pool2d, "conv2d": derived_backward(forward)})
    assert claims(derived) == {"supported_ops": "conv2d, max_pool2d", "derived_backward": "conv2d"}
    assert claims(PICKY) == {"supported_ops": "conv2d, avg_pool2d", "derived_backward": None}


@pytest.mark.parametrize(
    ("values", "partial", "whole"),
    [
        ({}, (), True),  # a network without such ops, or a file that does not tell
        ({"served": "conv2d 2/2, avg_pool2d 0/2", "served_flops_fraction": 0.99}, (), True),
        (
            {"served": "conv2d 2/2, avg_pool2d 0/2", "supported_ops": "conv2d, avg_pool2d"},
            ("avg_pool2d",),
            True,
        ),
        ({"served": "conv2d 2/2, avg_pool2d 1/2"}, ("avg_pool2d",), True),
        ({"served": "conv2d 1/2", "served_flops": "conv2d 0.9"}, ("conv2d",), False),
        ({"served": "conv2d 0/2, max_pool2d 1/1", "supported_ops": "max_pool2d"}, (), False),
        ({"served": "max_pool2d 0/1", "supported_ops": "conv2d"}, (), False),
        ({"served": "max_pool2d 1/1"}, (), True),
        ({"served_flops_fraction": 0.3}, (), False),
        ({"served_flops_fraction": 1.0}, (), True),
    ],
)
def test_which_rows_are_marked_and_which_are_ranked(
    values: Any, partial: tuple[str, ...], whole: bool
) -> None:
    read = attribution([row(**values)])
    assert tuple(share.op for share in read.partial) == partial
    assert read.whole is whole


def test_the_smallest_share_of_any_row_counts() -> None:
    rows = [
        row(served="conv2d 2/2", served_flops="conv2d 1"),
        row(served="conv2d 3/60", served_flops="conv2d 0.1"),
    ]
    assert attribution(rows) == Attribution((Share("conv2d", 3, 60, 0.1),), frozenset({"conv2d"}))


def race(**fft: Any) -> list[Row]:
    whole = {
        "served": "conv2d 2/2",
        "served_flops": "conv2d 1",
        "supported_ops": "conv2d",
        "served_flops_fraction": 1.0,
    }
    return [
        *timed([10.0, 10.1], backend="torch", images_per_second=12800.0, **whole),
        *timed([40.0, 40.1], backend="im2col", images_per_second=3200.0, **whole),
        *timed([1.0, 1.1], backend="fft", images_per_second=128000.0, **(whole | fft)),
    ]


HALF = {"served": "conv2d 1/2", "served_flops": "conv2d 0.853", "served_flops_fraction": 0.853}


def test_backends_that_left_convolutions_to_torch_are_listed_last_without_a_rank() -> None:
    text = table_markdown(race(**HALF))
    assert text.index("| torch |") < text.index("| im2col |") < text.index("| fft |")
    assert "| PARTLY: conv2d 85.3 % |" in text
    assert "- `fft`: not ranked: torch computed 14.7 % of the FLOPs of conv2d (1 of 2 calls)" in text
    assert "not ranked" not in table_markdown(race()).split("**images/s**")[0]


def test_ranking_all_lifts_the_order_and_keeps_the_mark() -> None:
    text = table_markdown(race(**HALF), rank="all")
    assert text.index("| fft |") < text.index("| torch |")
    assert "| PARTLY: conv2d 85.3 % |" in text
    assert "- `fft`: torch computed 14.7 % of the FLOPs of conv2d (1 of 2 calls)" in text


def test_the_terminal_marks_it_too() -> None:
    from rich.console import Console

    text = io.StringIO()
    print_table(Console(file=text, width=200), race(**HALF))
    assert "PARTLY: conv2d 85.3 %" in text.getvalue()
    assert "fft: not ranked: torch computed" in text.getvalue()


def test_a_derived_backward_is_marked_with_what_its_cost_is() -> None:
    line = comparison_table(race(derived_backward="conv2d")).groups[0].lines[0]
    assert (line.name, line.ranked) == ("fft", True)
    text = table_markdown(race(derived_backward="conv2d"))
    assert "| backward |" in text
    assert "| derived |" in text
    assert "- `fft`: the backward of conv2d is derived from the forward" in text
    assert "| backward |" not in table_markdown(race())


FORWARD_ONLY = """
    from convbench.registry import Backend, derived_backward, hookimpl

    @derived_backward
    def conv2d(input, weight, bias, stride, padding, dilation, groups):
        import torch
        return torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)

    @hookimpl
    def convbench_backends():
        yield Backend("forward_only", "a forward alone", lambda: {"conv2d": conv2d})
"""


def test_a_run_writes_it_into_its_rows(install: Any, tmp_path: Path) -> None:
    from convbench.suites import Suite, run
    from convbench.suites.config.suite import Timing

    install("forward-only", FORWARD_ONLY)
    suite = Suite(
        name="small",
        dataset="fashion-mnist-sample",
        architectures=("lenet",),
        backends=("forward_only",),
        devices=("cpu",),
        batch_sizes=(8,),
        timing=Timing(rounds=1, warmup_steps=1, steps=2, threads=1),
    )
    result = run(suite, out=tmp_path / "run", train=False)
    assert {row.kind for row in result.rows} == {"verify", "time"}
    for each in result.rows:
        assert each.served == "conv2d 2/2, avg_pool2d 0/2"
        assert each.served_flops == "conv2d 1, avg_pool2d 0"
        assert (each.served_calls, each.supported_ops, each.derived_backward) == (2, "conv2d", "conv2d")
    assert "| derived |" in (result.path / "table.md").read_text()
