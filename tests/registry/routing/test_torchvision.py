"""torchvision's networks on a backend: outputs and gradients are torch's within rounding, in both modes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from conftest import exhaustive
from convbench.registry import use_backend

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnext50_32x4d": {},
    "densenet121": {"memory_efficient": True},  # computes its bottlenecks again in backward
    "squeezenet1_1": {},
    "googlenet": {"aux_logits": True, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x0_5": {},
    "mnasnet0_5": {},
    "efficientnet_b0": {},
    "regnet_y_400mf": {},
    "convnext_tiny": {},
    "swin_t": {},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None},
}
QUICK = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5")
BOUND = 1e-9  # of the norm, in float64: a network of 100 layers multiplies what rounding does to one


@pytest.mark.parametrize("fuse", [False, exhaustive(True)])
@pytest.mark.parametrize("name", [each if each in QUICK else exhaustive(each) for each in NETWORKS])
def test_a_network_of_torchvision_is_computed_as_by_torch(name: str, fuse: bool) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **NETWORKS[name]).double()
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    states = []
    for training in (False, True):
        plain = deepcopy(model).train(training)
        routed = use_backend(deepcopy(model).train(training), "native", fuse=fuse)
        expected = answers(plain, images)
        size = max(each.norm() for each in expected)
        for ours, theirs in zip(answers(routed, images), expected, strict=True):
            # a bias before a batch norm has no gradient but for rounding
            assert (ours - theirs).norm() <= BOUND * theirs.norm() + BOUND / 1000 * size
        assert routed.served_calls == routed.calls > 0
        states.append((routed.state_dict(), plain.state_dict()))
    for ours, theirs in states:
        assert list(ours) == list(theirs)
        for key, value in theirs.items():  # running statistics, too
            torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-9)


def answers(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of the inputs and of the parameters."""
    torch.manual_seed(1)  # of dropout
    inputs = images.clone().requires_grad_()
    output = network(inputs)
    named = output if isinstance(output, dict) else getattr(output, "_asdict", lambda: {"out": output})()
    outputs = [each for each in named.values() if each is not None]
    torch.autograd.backward([each.square().mean() for each in outputs])
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    return [*(each.detach() for each in outputs), *[inputs.grad] * (inputs.grad is not None), *gradients]  # type: ignore[list-item]
