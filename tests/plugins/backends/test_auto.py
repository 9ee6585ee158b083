"""`auto`: the fastest candidate that is right wins, whatever the others do, and is asked for once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import exhaustive
from convbench.plugins.backends.auto import dispatch, timing
from convbench.plugins.backends.auto.candidates import Candidate, candidates_of
from convbench.plugins.backends.auto.decisions import FORWARD, OF_INPUT, OF_WEIGHT, Decision, whole
from convbench.plugins.backends.auto.signature import Call
from convbench.plugins.backends.auto.timing import clock, compare, quartile, steady
from convbench.plugins.backends.auto.tuner import choose
from convbench.registry import Accuracy, Backend, discover, use_backend, verify
from convbench.registry.authoring.conv_parts import TORCHS, Parts, parts_of
from convbench.registry.records import choices_of, chooses
from timed_candidates import (
    CLOCK,
    SHAPES,
    Told,
    arguments,
    call,
    candidate,
    dispatched,
    misbehaving,
    named,
    of_another_shape,
    raising,
    refusing,
    slow,
    taking,
    wrong,
    wrong_backwards,
)


@pytest.fixture(autouse=True)
def _our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_now", CLOCK)


# --- who wins -------------------------------------------------------------------------------------------------


def test_the_fastest_wins() -> None:
    decision = choose(call(), named(candidate("torch", slow), candidate("quick")), seconds=0.02)
    assert decision.winner == {"whole": "quick"}
    assert decision.seconds["whole"]["quick"] < 0.002 < decision.seconds["whole"]["torch"]
    assert decision.rounds >= 5


@pytest.mark.parametrize("fault", [wrong, wrong_backwards, raising, refusing, misbehaving, of_another_shape])
def test_what_is_wrong_never_wins(fault: Callable[..., Tensor]) -> None:
    threads = torch.get_num_threads()
    decision = choose(call(), named(candidate("torch", slow), candidate("faulty", fault)), seconds=0.02)
    assert decision.winner == {"whole": "torch"}
    assert decision.left_out["faulty"]
    assert torch.get_num_threads() == threads


def test_the_second_wins_where_the_first_is_wrong() -> None:
    some = named(candidate("torch", slow), candidate("wrong", wrong), candidate("right"))
    decision = choose(call(), some, seconds=0.02)
    assert decision.winner == {"whole": "right"}
    assert {"wrong"} >= set(decision.left_out)  # known to be wrong only if it was the faster of the two


@pytest.mark.parametrize(("share", "winner"), [(0.97, "torch"), (0.9, "faster")])
def test_a_narrow_win_is_none(share: float, winner: str) -> None:
    """Within a few percent of torch there is nothing to win that would show between other layers."""
    some = named(candidate("torch", taking(0.01)), candidate("faster", taking(0.01 * share)))
    decision = choose(call(), some)
    assert decision.winner == {"whole": winner}
    assert decision.seconds["whole"]["faster"] < decision.seconds["whole"]["torch"]


def test_what_torch_cannot_do_raises_as_torch_does(tmp_path: Path) -> None:
    op = dispatched(named(candidate("torch")), tmp_path)
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        op(torch.randn(16, 4, 12, 12), torch.randn(8, 3, 3, 3))


def test_the_hopeless_are_tried_on_a_corner_only() -> None:
    sizes: list[int] = []

    def hopeless(input: Tensor, *rest: Any, **more: Any) -> Tensor:
        sizes.append(input.numel())
        CLOCK.seconds += 2e-5 * input.numel()
        return F.conv2d(input, *rest, **more)

    large = torch.randn(64, 8, 48, 48)
    made = call(input=large, weight=torch.randn(8, 8, 3, 3))
    decision = choose(made, named(candidate("torch"), candidate("hopeless", hopeless)), seconds=0.02)
    assert decision.winner == {"whole": "torch"}
    assert max(sizes) < large.numel() / 100
    assert "too slow" in decision.left_out["hopeless"]


def test_who_takes_part(tmp_path: Path) -> None:
    backends = {
        "torch": {},
        "of_cuda": {"devices": ("cuda",)},
        "of_doubles": {"dtypes": ("float64",)},
        "inexact": {"accuracy": {"conv2d": Accuracy("normwise")}},
        "able": {},
    }
    told = Told(whole("torch"))
    seen: list[set[str]] = []

    def chooser(call: Call, candidates: Mapping[str, Candidate]) -> Decision:
        seen.append(set(candidates))
        return told(call, candidates)

    some = named(*(candidate(name, **claims) for name, claims in backends.items()))
    dispatched(some, tmp_path, chooser)(**arguments())
    assert seen == [{"torch", "able"}]


def test_the_registered_candidates(install: Any) -> None:
    install(
        "acme",
        """
        from convbench.registry import Backend, hookimpl
        @hookimpl
        def convbench_backends():
            for name, rest in {
                "fine": {}, "absent": {"unavailable": lambda: "no such device"},
                "random": {"deterministic": False}, "broken": {"load": lambda: 1 / 0},
            }.items():
                yield Backend(name, "", **{"load": lambda: {"conv2d": print}, **rest})
        """,
    )
    found = candidates_of(discover())
    assert next(iter(found)) == "torch"
    assert "fine" in found
    assert not {"auto", "absent", "random", "broken"} & set(found)
    assert found["fine"].fingerprint.startswith("acme 1.0, sources ")


# --- races ----------------------------------------------------------------------------------------------------


def test_a_race_is_interleaved_and_ends_when_it_is_settled() -> None:
    order: list[str] = []
    runners = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    seconds = {"a": 1.0, "b": 1.1}
    times = compare(runners, lambda work: (work(), seconds[order[-1]])[1], 1e9, seed=0)
    rounds = len(times["a"])
    assert rounds == len(times["b"]) == 7  # seven of seven: one in 128 by chance
    assert [set(order[at : at + 2]) for at in range(0, 2 * rounds, 2)] == [{"a", "b"}] * rounds
    assert len(set(order[::2])) == 2  # not always the same one first


def test_whoever_is_far_behind_leaves() -> None:
    runners: dict[str, Callable[[], Any]] = {name: (lambda name=name: name) for name in ("a", "b", "c")}
    seconds = {"a": 1.0, "b": 1.001, "c": 2.0}
    times = compare(runners, lambda work: seconds[work()], 1e9, seed=0)  # type: ignore[index]
    assert len(times["c"]) == 3


def test_time_slices_of_others_do_not_decide() -> None:
    """The first is faster alone; in most rounds somebody is in its way."""
    alone = [1.0, 1.0, 1.0, 100.0, 100.0, 100.0, 100.0]
    assert quartile(alone) < quartile([2.0] * 7)
    assert not steady(alone)
    assert steady([1.0, 1.1, 1.2, 1.3, 1.0, 1.1, 5.0])


def test_a_race_without_end_ends_with_its_time() -> None:
    runners: dict[str, Callable[[], Any]] = {"a": object, "b": object}
    times = compare(runners, lambda work: 1.0, 0.0, seed=0)
    assert {name: len(each) for name, each in times.items()} == {"a": 7, "b": 7}


def test_the_clock_waits_for_the_device() -> None:
    waits: list[float] = []

    def wait() -> None:
        waits.append(CLOCK.seconds)
        CLOCK.seconds += 0.002

    assert clock(wait)(lambda: None) >= 0.002
    assert len(waits) == 2


# --- parts ----------------------------------------------------------------------------------------------------


def in_parts(**delays: float) -> Callable[..., Tensor]:
    """A convolution whose parts each take so many seconds."""

    def op(*args: Any, **kwargs: Any) -> Tensor:
        CLOCK.seconds += delays.get("forward", 0.0)
        return F.conv2d(*args, **kwargs)

    def backward(*args: Any) -> Any:
        for part, wanted in zip(("of_input", "of_weight"), args[-1], strict=False):
            CLOCK.seconds += delays.get(part, 0.0) * wanted
        return TORCHS.backward(*args)

    class Whole(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
            ctx.save_for_backward(input, weight)
            return op(input, weight, bias, *options)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Any:
            plain = (1, 1), (0, 0), (1, 1), 1
            return (*backward(upstream, *ctx.saved_tensors, *plain, ctx.needs_input_grad[:3]), *[None] * 4)

    def conv2d(
        input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:  # fmt: skip
        output: Tensor = Whole.apply(input, weight, bias, stride, padding, dilation, groups)
        return output

    conv2d.__dict__["parts"] = Parts(op, backward)
    return conv2d


def test_the_fastest_parts_are_put_together() -> None:
    some = named(
        candidate("torch", in_parts(forward=0.004, of_input=0.004)),
        candidate("forwards", in_parts(of_input=0.004, of_weight=0.004)),
        candidate("backwards", in_parts(forward=0.004, of_weight=0.004)),
    )
    decision = choose(call(), some, seconds=0.05)
    assert decision.winner == {FORWARD: "forwards", OF_INPUT: "backwards", OF_WEIGHT: "torch"}
    assert str(decision) == "forwards/backwards/torch"
    assert decision.last[str(decision)] < 0.004 <= min(decision.seconds["whole"].values())


def test_a_first_layer_has_no_gradient_of_its_input() -> None:
    some = named(
        candidate("torch", in_parts(forward=0.004)), candidate("forwards", in_parts(of_weight=0.004))
    )
    decision = choose(call(input=torch.randn(SHAPES[0])), some, seconds=0.05)
    assert decision.winner == {FORWARD: "forwards", OF_WEIGHT: "torch"}
    assert str(decision) == "forwards/-/torch"


def test_parts_that_fail_by_themselves_leave() -> None:
    broken = in_parts()
    broken.__dict__["parts"] = Parts(F.conv2d, raising)
    decision = choose(
        call(), named(candidate("torch", in_parts()), candidate("broken", broken)), seconds=0.05
    )
    assert OF_INPUT not in decision.winner or decision.winner[OF_INPUT] == "torch"
    assert {f"broken ({part})" for part in (OF_INPUT, OF_WEIGHT)} <= set(decision.left_out)


NATIVE = discover().backend("native")


@pytest.mark.parametrize(
    "order",
    [
        ("torch", "native", "native"),
        exhaustive(("native", "torch", "native")),
        exhaustive(("native", "native", "torch")),
        ("im2col", "native", "torch"),
    ],
)
@pytest.mark.skipif(NATIVE.unavailable() is not None, reason="needs native kernels")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_any_mixture_keeps_the_contract(
    order: tuple[str, str, str], tmp_path: Path, monkeypatch: Any
) -> None:
    """Calls are put together from parts wherever they can be, under `torch.compile` as well."""
    monkeypatch.setattr(dispatch, "SMALL", 0)
    found = candidates_of(discover())

    def chooser(call: Call, _: Mapping[str, Candidate]) -> Decision:
        parts = dict(zip((FORWARD, OF_INPUT, OF_WEIGHT), order, strict=True))
        return Decision(parts) if call.pairs and call.needs else whole("torch")

    op = dispatched(found, tmp_path, chooser)
    backend = Backend("mixed", "", lambda: {"conv2d": op}, dtypes=("float32",), second_order=("conv2d",))
    report = verify(backend, generated=10)
    assert report.passed, report.failures[:3]
    assert report.compiles == "passed"
    assert "/".join(order) in op.choices().values()


def test_parts_are_what_the_whole_is() -> None:
    """Of every backend that hands out parts."""
    values = arguments()
    tensors = [values[name] for name in ("input", "weight", "bias")]
    output = F.conv2d(*tensors, stride=2, padding=1)
    upstream = torch.randn_like(output)
    right = torch.autograd.grad(output, tensors, upstream)
    found = [
        each
        for each in candidates_of(discover()).values()
        if "conv2d" in each.backend.ops and each.parts("conv2d")
    ]
    assert {"torch"} <= {each.name for each in found}
    for each in found:
        parts = each.parts("conv2d")
        assert parts is not None
        for needs in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
            with torch.no_grad():
                given = parts.backward(upstream, *tensors[:2], (2, 2), (1, 1), (1, 1), 1, needs)
            for gradient, wanted, need in zip(given, right, needs, strict=True):
                if need:
                    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-3)
    assert parts_of(F.max_pool2d) is None


# --- from call to call ----------------------------------------------------------------------------------------


def test_a_call_is_decided_once(tmp_path: Path) -> None:
    told = Told(whole("torch"))
    op = dispatched(named(candidate("torch")), tmp_path, told)
    for _ in range(3):
        op(**arguments())
    assert len(told.calls) == 1
    with torch.no_grad():
        op(**arguments())
    op(**arguments(needs=["weight", "bias"]))
    op(**(arguments() | {"stride": [2, 2]}))
    op(**(arguments() | {"stride": (2, 2)}))
    every = "input", "weight", "bias"
    assert [each.needs for each in told.calls] == [every, (), every[1:], every]
    assert dict(told.calls[-1].options)["stride"] == (2, 2)


def test_small_calls_are_the_baselines(tmp_path: Path) -> None:
    told = Told(whole("other"))
    op = dispatched(named(candidate("torch"), candidate("other", raising)), tmp_path, told)
    op(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3))
    assert not told.calls
    assert set(op.choices().values()) == {"torch"}


def test_the_end_of_an_epoch_follows_its_other_batches(tmp_path: Path) -> None:
    told = Told(whole("torch"))
    op = dispatched(named(candidate("torch")), tmp_path, told)
    op(**arguments())
    op(**(arguments() | {"input": torch.randn(12, *SHAPES[0][1:], requires_grad=True)}))
    assert [each.batch for each in told.calls] == [16]
    op(**(arguments() | {"input": torch.randn(32, *SHAPES[0][1:], requires_grad=True)}))
    assert [each.batch for each in told.calls] == [16, 32]


def test_nothing_is_timed_under_autocast(tmp_path: Path) -> None:
    told = Told(whole("torch"))
    op = dispatched(named(candidate("torch")), tmp_path, told)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert op(**arguments()).dtype == torch.bfloat16
    assert not told.calls


def test_the_compiler_takes_what_is_known_and_times_nothing(tmp_path: Path) -> None:
    traced: list[str] = []

    def other(*args: Any, **kwargs: Any) -> Tensor:
        traced.append("other")
        return F.conv2d(*args, **kwargs)

    told = Told(whole("other"))
    ops = {"conv2d": dispatched(named(candidate("torch"), candidate("other", other)), tmp_path, told)}
    routed = use_backend(nn.Conv2d(3, 8, 3), Backend("chosen", "", lambda: ops))
    compiled = torch.compile(routed, backend="aot_eager", fullgraph=True)
    image = torch.randn(SHAPES[0])
    compiled(image)
    assert not told.calls
    assert not traced  # nothing is known: torch
    torch.compiler.reset()
    routed(image)
    assert len(told.calls) == 1
    before = len(traced)
    torch.testing.assert_close(compiled(image), routed.model(image))
    assert len(traced) > before
    compiled(image[:12]).sum().backward()  # as for more images
    assert len(told.calls) == 1
    torch.compiler.reset()


def test_transformed_calls_are_the_baselines(tmp_path: Path) -> None:
    """What somebody else has for autograd need not have what `torch.func` wants."""
    op = dispatched(named(candidate("torch"), candidate("other", in_parts())), tmp_path, Told(whole("other")))
    values = arguments(needs=())
    op(**values)
    image, weight = values.pop("input"), values.pop("weight")
    found = torch.func.grad(lambda weight: op(image, weight, **values).square().sum())(weight)
    right = torch.func.grad(lambda weight: F.conv2d(image, weight, **values).square().sum())(weight)
    torch.testing.assert_close(found, right)
    assert torch.func.vmap(lambda weight: op(image, weight, **values))(weight[None]).shape[0] == 1


def test_it_tells_what_it_chose(tmp_path: Path) -> None:
    op = dispatched(named(candidate("torch")), tmp_path, Told(whole("torch")))
    backend = Backend("chosen", "", lambda: {"conv2d": op})
    assert chooses(backend)
    assert not chooses(discover().backend("torch"))
    assert choices_of(backend) is None
    op(**arguments())
    assert choices_of(backend) == "conv2d 16x3x12x12 * 8x3x3x3: torch"


def test_it_tells_apart_what_training_and_an_evaluation_chose(tmp_path: Path) -> None:
    def by_gradients(call: Call, candidates: Mapping[str, Candidate]) -> Decision:
        return whole("other" if call.needs else "torch")

    op = dispatched(named(candidate("torch"), candidate("other")), tmp_path, by_gradients)
    op(**arguments())
    with torch.no_grad():
        op(**arguments())
    assert op.choices() == {
        "conv2d 16x3x12x12 * 8x3x3x3": "other",
        "conv2d 16x3x12x12 * 8x3x3x3 without gradients": "torch",
    }


def test_a_call_that_leaves_no_memory_to_try_it_out_is_the_baselines(tmp_path: Path) -> None:
    tried: list[Call] = []

    def full(call: Call, candidates: Mapping[str, Candidate]) -> Decision:
        tried.append(call)
        raise torch.OutOfMemoryError("full")

    op = dispatched(named(candidate("torch"), candidate("other", raising)), tmp_path, full)
    for _ in range(2):
        values = tuple(arguments().values())
        torch.testing.assert_close(op(*values), F.conv2d(*values))
    assert len(tried) == 1
    assert not list(tmp_path.iterdir())


def test_it_times_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it, on real candidates and by the real clock."""
    monkeypatch.setattr(timing, "_now", time.perf_counter)
    backend = discover().backend("auto")
    network = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2))
    routed = use_backend(network, backend)
    image = torch.randn(32, 1, 28, 28)
    routed(image).sum().backward()
    assert routed.served == "conv2d 1/1, avg_pool2d 1/1"
    chosen = choices_of(backend)
    assert chosen is not None
    assert "avg_pool2d 32x6x28x28" in chosen
    gradients = [each.grad for each in network.parameters()]
    torch.testing.assert_close(routed(image), network(image))
    assert all(each is not None for each in gradients)
