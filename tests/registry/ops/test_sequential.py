"""`sequential`: neighbouring layers as one op, found by routing, checked, and apart where it must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convbench.registry import Backend, Unsupported, use_backend
from convbench.registry.conformance.cases import chain, conformance_cases
from convbench.registry.conformance.fused_cases import fused_cases
from convbench.registry.conformance.verify import check
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.integrity.step_audit import StepAudit
from convbench.registry.ops.contract import OPS
from convbench.registry.ops.sequential import MOST, sequential

REFERENCES = {name: op.reference for name, op in OPS.items()}
IMAGES = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
ALL = 12  # layers of the network


def backend(**ops: Callable[..., Any]) -> Backend:
    return Backend("planted", "for these tests", lambda: ops)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    stages = (
        nn.Conv2d(1, 3, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2),
    )  # fmt: skip
    linear = nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)
    return nn.Sequential(*stages, nn.Flatten(), *linear)


def test_a_network_is_one_op_with_the_flops_of_its_stages() -> None:
    model = network()
    routed = use_backend(model, backend(**REFERENCES), fuse=True)
    torch.testing.assert_close(routed(IMAGES), model(IMAGES))
    assert routed.served == "sequential 1/1"
    single = use_backend(model, backend(**REFERENCES))
    single(IMAGES)
    totals = [sum(tally.flops for tally in each.tallies.values()) for each in (routed, single)]
    assert totals[0] == totals[1]


def test_who_does_not_offer_it_is_as_before() -> None:
    model = network()
    without = {name: op for name, op in REFERENCES.items() if name != "sequential"}
    plain = use_backend(model, backend(**without), fuse=True)
    torch.testing.assert_close(plain(IMAGES), model(IMAGES))
    assert plain.served == "conv2d_activation_max_pool2d 1/1, conv2d_activation_avg_pool2d 1/1"

    def refuses(*args: Any, **rest: Any) -> Tensor:
        raise Unsupported("not today")

    refusing = use_backend(model, backend(**{**without, "sequential": refuses}), fuse=True)
    torch.testing.assert_close(refusing(IMAGES), model(IMAGES))
    assert refusing.served == plain.served
    assert refusing.refusals == ["sequential: not today"]


def test_what_is_one_stage_or_cut_by_others_is_not() -> None:
    conv, act, pool = nn.Conv2d(1, 3, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2)
    for model in (
        nn.Sequential(conv, act, pool),
        nn.Sequential(conv, act, pool, nn.Flatten(2), nn.Linear(36, 2)),
        nn.Sequential(conv, act, pool, nn.Dropout(0.0), nn.Flatten(), nn.Linear(108, 2)),
        nn.Sequential(conv, act, pool, nn.Flatten(), nn.Linear(108, 2), nn.ReLU(), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Flatten(), nn.Linear(144, 2), nn.Sigmoid(), nn.Linear(2, 2)),
    ):
        routed = use_backend(model, backend(**REFERENCES), fuse=True)
        torch.testing.assert_close(routed(IMAGES), model(IMAGES))
        assert "sequential" not in routed.served


def test_a_network_with_more_layers_than_it_takes_begins_with_it() -> None:
    stage = nn.Conv2d(1, 3, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2)
    more = [nn.Linear(108 if not number else 7, 7) for number in range(MOST + 2)]
    model = nn.Sequential(*stage, nn.Flatten(), *more)
    routed = use_backend(model, backend(**REFERENCES), fuse=True)
    torch.testing.assert_close(routed(IMAGES), model(IMAGES))
    assert routed.served == "sequential 1/1"


@pytest.mark.parametrize("layer", range(ALL))
def test_a_layer_that_somebody_watches_or_changes_is_called(layer: int) -> None:
    model = network()
    routed = use_backend(model, backend(**REFERENCES), fuse=True)
    seen: list[Any] = []
    handle = model[layer].register_forward_hook(lambda *_: seen.append(_))
    torch.testing.assert_close(routed(IMAGES), model(IMAGES))
    handle.remove()
    assert len(seen) == 2
    torch.testing.assert_close(routed(IMAGES), model(IMAGES))
    model[layer] = nn.Identity() if layer in (1, 4, 8, 10) else model[layer]
    model[layer].forward = lambda input, was=model[layer].forward: 2 * was(input)  # type: ignore[method-assign]
    torch.testing.assert_close(routed(IMAGES), model(IMAGES))


def test_options_that_change_later_count() -> None:
    model = network()
    routed = use_backend(model, backend(**REFERENCES), fuse=True)
    routed(IMAGES)
    model[3].padding = 1
    model[5].kernel_size, model[5].stride = 3, 2
    torch.testing.assert_close(routed(IMAGES), model(IMAGES))
    model[5].kernel_size, model[5].padding = 2, 0
    model[3].padding = 0
    model[2].ceil_mode = True  # more than the op can say
    routed.reset_counts()
    torch.testing.assert_close(routed(IMAGES), model(IMAGES))
    assert "sequential" not in routed.served


def test_it_compiles_and_casts_as_torch_does() -> None:
    model = network()
    routed = use_backend(model, backend(**REFERENCES), fuse=True)
    compiled = torch.compile(routed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(routed(IMAGES), model(IMAGES))


def test_it_is_verified_with_the_stages_that_it_falls_back_to() -> None:
    cases = fused_cases(network(), backend(**REFERENCES), IMAGES)
    stages = ["conv2d_activation_avg_pool2d", "conv2d_activation_max_pool2d"]
    assert [case.op for case in cases] == ["sequential", *stages]
    assert "None" not in str(dict(cases[0].shapes))


class Off(torch.autograd.Function):
    """A gradient that is off by a share."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, share: float) -> Tensor:
        ctx.share = share
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * (1 + ctx.share), None


@pytest.mark.parametrize("parameter", range(10))
@pytest.mark.parametrize("share", [0.0, 0.02])
def test_an_audit_finds_a_gradient_that_is_wrong(parameter: int, share: float) -> None:
    def off(input: Tensor, *parameters: Tensor, **rest: Any) -> Tensor:
        given = list(parameters)
        given[parameter] = Off.apply(given[parameter], share)
        return sequential(input, *given, **rest)

    audit = StepAudit(backend(**{**REFERENCES, "sequential": off}))
    with audit.watching():
        use_backend(network(), audit.backend, fuse=True)(IMAGES)
        assert [call.served for call in audit.calls] == [True]
        if not share:
            return audit.check_gradients()
        with pytest.raises(IntegrityError, match=r"sequential.*the gradient of (weight|bias)"):
            audit.check_gradients()
    return None


def test_an_audit_finds_an_output_that_is_wrong() -> None:
    def off(*args: Any, **rest: Any) -> Tensor:
        return sequential(*args, **rest) * 1.001

    audit = StepAudit(backend(**{**REFERENCES, "sequential": off}))
    with audit.watching(), pytest.raises(IntegrityError, match=r"sequential.*the output is"):
        use_backend(network(), audit.backend, fuse=True)(IMAGES)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bounds_are_tight_enough_to_find_a_rounding_too_many(dtype: str) -> None:
    """By nine bits of the first weights, or of the output."""

    def coarse(tensor: Tensor) -> Tensor:
        return tensor + tensor.detach() * torch.finfo(tensor.dtype).eps * 2**9

    case = conformance_cases("sequential")[1]
    right = check(backend(sequential=sequential), OPS["sequential"], case, dtype, "cpu")
    assert right.state == "passed", right.message
    for wrong in (
        lambda input, **rest: coarse(sequential(input, **rest)),
        lambda input, weight0, **rest: sequential(input, weight0=coarse(weight0), **rest),
    ):
        found = check(backend(sequential=wrong), OPS["sequential"], case, dtype, "cpu")
        assert found.state == "failed"


def test_parameters_must_fit_the_layers() -> None:
    layers = (("flatten",), ("linear", "none"))
    weight, bias = torch.randn(3, 144), torch.randn(3)
    torch.testing.assert_close(
        sequential(IMAGES, weight0=weight, bias0=bias, layers=layers),
        nn.functional.linear(IMAGES.flatten(1), weight, bias),
    )
    with pytest.raises(ValueError, match="too few"):
        sequential(IMAGES, layers=layers)
    with pytest.raises(ValueError, match="too many"):
        sequential(IMAGES, weight, bias, weight, layers=layers)
    with pytest.raises(ValueError, match="no layer of sequential"):
        sequential(IMAGES, weight, bias, layers=(("dense", "none"),))
    with pytest.raises(TypeError, match="wieght0"):
        sequential(IMAGES, wieght0=weight, layers=layers)


def test_torchs_own_layers_are_within_the_bounds_where_windows_share_pixels() -> None:
    """A gradient is a sum over windows there, which cancels, and is as far off as its terms are large."""
    layer = ("conv2d_activation_max_pool2d", 1, 0, 1, 2, "relu", 3, 1)
    case = chain((40, 2, 22, 7), ((6, 1, 5, 4), layer), bias=False)
    torchs = Backend("layers", "torch's own", lambda: {"sequential": OPS["sequential"].reference})
    for seed in (0, 3, 13, 16):
        outcome = check(torchs, OPS["sequential"], case, "float32", "cpu", seed=seed)
        assert outcome.state == "passed", outcome.message
