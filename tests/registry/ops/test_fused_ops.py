"""Fused ops: held against float64 like any other, found in a model that stays as it is, and counted rightly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convbench.registry import OPS, Backend, Unsupported, use_backend, verify
from convbench.registry.conformance.cases import Case, conv2d, fused, model_cases, pool
from convbench.registry.conformance.fused_cases import fused_cases
from convbench.registry.conformance.verify import check
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.integrity.step_audit import StepAudit

FUSED = {name: op for name, op in OPS.items() if op.base is not None}
REFERENCES = {name: op.reference for name, op in OPS.items()}
CONV = conv2d((4, 3, 9, 8), (4, 3, 3, 3), padding=1)
POOLS = {
    "activation_max_pool2d": pool("max_pool2d", (4, 3, 8, 8), kernel_size=2),
    "activation_avg_pool2d": pool("avg_pool2d", (4, 3, 8, 8), kernel_size=2),
}
CASES = [
    fused(op, like, activation)
    for op, like in {"conv2d_activation": CONV, **POOLS}.items()
    for activation in ("relu", "sigmoid", "tanh")
]


def backend(**ops: Callable[..., Any]) -> Backend:
    return Backend("planted", "for these tests", lambda: ops)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Sigmoid(), nn.AvgPool2d(2)
        ),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


class Wrapped(nn.Module):
    """A module that is not torch's own, so that a function mode has to route it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = network()

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).relu()  # type: ignore[no-any-return]


IMAGES = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))


class Slope(torch.autograd.Function):
    """The identity, with a gradient that is off by some share."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, share: float) -> Tensor:
        ctx.share = share
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad_output * (1 + ctx.share), None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_errors_of_value_and_slope_are_found(case: Case) -> None:
    reference = OPS[case.op].reference
    for share in (0.0, 1e-4):
        state = "failed" if share else "passed"
        slope = backend(**{case.op: lambda share=share, **call: Slope.apply(reference(**call), share)})
        value = backend(**{case.op: lambda share=share, **call: reference(**call) * (1 + share)})
        for planted in (slope, value):
            outcome = check(planted, OPS[case.op], case, "float32", "cpu")
            assert outcome.state == state, outcome.message


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_slope_of_another_activation_is_found(case: Case) -> None:
    """The output is right, and its gradient that of an activation that looks like it."""
    others = {"relu": "sigmoid", "sigmoid": "tanh", "tanh": "sigmoid"}

    def wrong(activation: str, **call: Any) -> Tensor:
        right = OPS[case.op].reference(activation=activation, **call)
        other = OPS[case.op].reference(activation=others[activation], **call)
        return other + (right - other).detach()

    assert check(backend(**{case.op: wrong}), OPS[case.op], case, "float32", "cpu").state == "failed"


def test_which_side_of_a_kink_rounding_decides() -> None:
    """A sum that is zero but for rounding may have the gradient of either side; another has its own."""
    case = fused("conv2d_activation", conv2d((64, 1, 40, 40), (1, 1, 1, 1), bias=False), "relu")

    def lifted(by: float) -> Callable[..., Tensor]:
        def op(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
            sums = input * weight.view(())
            return torch.relu(sums) + ((sums.abs() < by) * (sums - sums.detach())) * (sums <= 0)

        return op

    assert (
        check(backend(conv2d_activation=lifted(1e-9)), OPS[case.op], case, "float32", "cpu").state == "passed"
    )
    assert (
        check(backend(conv2d_activation=lifted(1e-2)), OPS[case.op], case, "float32", "cpu").state == "failed"
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_half_precision_and_the_whole_contract(dtype: str) -> None:
    definition = Backend(
        "whole",
        "",
        lambda: {name: op.reference for name, op in FUSED.items()},
        dtypes=(dtype,),
    )
    report = verify(definition, generated=3)
    assert report.passed, report.failures
    assert {outcome.op for outcome in report.outcomes if outcome.state == "passed"} == set(FUSED)


@pytest.mark.parametrize("make", [network, Wrapped])
def test_neighbours_are_fused_and_nothing_else_changes(make: Callable[[], nn.Module]) -> None:
    model = make()
    wanted = model(IMAGES)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    routed, plain = (
        use_backend(model, backend(**REFERENCES), fuse=True),
        use_backend(model, backend(**REFERENCES)),
    )
    model.eval(), routed.eval(), plain.eval()
    wanted = model(IMAGES)
    assert torch.equal(routed(IMAGES), wanted)
    assert torch.equal(plain(IMAGES), wanted)
    assert (
        routed.served == "conv2d_activation 1/1, activation_max_pool2d 1/1, conv2d_activation_avg_pool2d 1/1"
    )
    assert plain.served == "conv2d 2/2, max_pool2d 1/1, avg_pool2d 1/1"
    total = [sum(tally.flops for tally in each.tallies.values()) for each in (routed, plain)]
    assert total[0] == total[1]
    assert routed.served_flops_fraction == plain.served_flops_fraction == 1.0
    assert {name: set(vars(module)) for name, module in model.named_modules()} == {
        name: set(attributes) for name, attributes in before.items()
    }


@pytest.mark.parametrize("make", [network, Wrapped])
def test_compiled_models_are_fused_too(make: Callable[[], nn.Module]) -> None:
    def offset(name: str) -> Callable[..., Tensor]:
        return lambda *args, **rest: REFERENCES[name](*args, **rest) + 0.25

    planted = backend(**{name: offset(name) for name in FUSED})
    model = make().eval()
    eager = use_backend(model, planted, fuse=True)
    compiled = torch.compile(eager, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IMAGES), eager(IMAGES))
    assert not torch.equal(eager(IMAGES), model(IMAGES))


class OneByOne(nn.Module):
    """A module that takes the layers of a Sequential by itself, and another one as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        self.rest = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.first:
            images = layer(images)
        return self.rest[:2](images) * len(self.rest) + self.rest[1](self.rest[0](images))  # type: ignore[no-any-return]


def test_layers_that_are_taken_one_by_one_are_compiled_as_they_are() -> None:
    model = OneByOne()
    routed = use_backend(model, backend(**REFERENCES), fuse=True)
    assert torch.equal(routed(IMAGES), model(IMAGES))
    compiled = torch.compile(routed, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IMAGES), model(IMAGES))


def test_a_stage_is_as_many_ops_as_the_backend_takes() -> None:
    """Convolution, activation and pooling: one op, or two, or three, with the operations of all of them."""
    model = network().eval()
    whole = use_backend(model, backend(**REFERENCES), fuse=True)
    without = {name: op for name, op in REFERENCES.items() if not name.startswith("conv2d_activation_")}
    pairs = use_backend(model, backend(**without), fuse=True)
    single = use_backend(model, backend(**REFERENCES))
    for routed in (whole, pairs, single):
        assert torch.equal(routed(IMAGES), model(IMAGES))
    assert "activation_avg_pool2d 1/1" in pairs.served
    totals = [sum(tally.flops for tally in routed.tallies.values()) for routed in (whole, pairs, single)]
    assert len(set(totals)) == 1

    pool = model[0][4]
    pool.ceil_mode = True  # more than the op can say, and after the routing
    assert torch.equal(whole(IMAGES), model(IMAGES))
    assert whole.served.startswith("conv2d 1/1, ")
    assert "activation_avg_pool2d 1/1, conv2d_activation_avg_pool2d 1/1" in whole.served


def test_what_is_refused_is_computed_apart() -> None:
    def refuses(*args: Any, **rest: Any) -> Tensor:
        raise Unsupported("not today")

    model = network().eval()
    for extra in ({}, dict.fromkeys(FUSED, refuses)):
        single = {name: op.reference for name, op in OPS.items() if op.base is None}
        routed = use_backend(model, backend(**single, **extra), fuse=True)
        assert torch.equal(routed(IMAGES), model(IMAGES))
        assert routed.served == "conv2d 2/2, max_pool2d 1/1, avg_pool2d 1/1"
        assert bool(routed.refusals) == bool(extra)
        compiled = torch.compile(routed, backend="eager", fullgraph=True)
        assert torch.equal(compiled(IMAGES), model(IMAGES))


def test_what_somebody_watches_is_left_alone() -> None:
    model = network().eval()
    seen: list[Tensor] = []
    routed = use_backend(model, backend(**REFERENCES), fuse=True)
    handle = model[0][1].register_forward_hook(lambda module, args, output: seen.append(output))
    routed(IMAGES)
    handle.remove()
    assert len(seen) == 1
    assert routed.served.startswith("conv2d 1/1, ")
    assert "conv2d_activation " not in routed.served
    assert torch.equal(model[0][0](IMAGES), nn.Conv2d.forward(model[0][0], IMAGES))


def test_what_somebody_watches_everywhere_is_left_alone() -> None:
    model = network().eval()
    routed = use_backend(model, backend(**REFERENCES), fuse=True)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        routed(IMAGES)
    finally:
        handle.remove()
    assert model[0][1] in seen
    routed.reset_counts()
    routed(IMAGES)
    assert "conv2d_activation 1/1" in routed.served


def test_an_activation_that_writes_into_what_others_see_is_left_alone() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2))
    images = IMAGES.clone()
    use_backend(model, backend(**REFERENCES), fuse=True)(images)
    assert torch.equal(images, IMAGES.relu())


def test_fused_calls_of_a_model_are_known_beforehand() -> None:
    model, planted = network().eval(), backend(**REFERENCES)
    cases = fused_cases(model, planted, IMAGES)
    assert [case.op for case in cases] == [
        "conv2d_activation",
        "conv2d_activation_avg_pool2d",
        "activation_max_pool2d",
    ]
    assert {case.op for case in model_cases(model, IMAGES)} == {"conv2d", "max_pool2d", "avg_pool2d"}
    assert fused_cases(model, backend(conv2d=OPS["conv2d"].reference), IMAGES) == []
    audit = StepAudit(planted)
    with audit.watching():
        use_backend(model, audit.backend, fuse=True)(IMAGES.requires_grad_())
        IMAGES.requires_grad_(False)
        with torch.no_grad():  # as in an evaluation
            use_backend(model, audit.backend, fuse=True)(IMAGES)
    assert {replace(call.case, needs=None) for call in audit.calls if call.case.op in FUSED} == set(cases)


@pytest.mark.parametrize("op", ["activation_max_pool2d", "conv2d_activation_avg_pool2d"])
def test_a_step_with_a_wrong_slope_is_found(op: str) -> None:
    def wrong(*args: Any, **rest: Any) -> Tensor:
        return Slope.apply(REFERENCES[op](*args, **rest), 0.05)  # type: ignore[no-any-return]

    audit = StepAudit(backend(**{**REFERENCES, op: wrong}))
    with audit.watching():
        use_backend(network(), audit.backend, fuse=True)(IMAGES)
        with pytest.raises(IntegrityError, match=rf"{op}.*gradient of input"):
            audit.check_gradients()
