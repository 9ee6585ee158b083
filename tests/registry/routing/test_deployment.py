"""Routed models are saved, loaded, copied, exported and taken apart again."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from copy import copy as copied
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.swa_utils import AveragedModel

from conftest import exhaustive
from convbench.registry import Backend, Routed, UsageError, discover, unroute, use_backend
from convbench.registry.known_faults import forget_known_faults

AVAILABLE = [name for name, each in discover(installed=()).backends.items() if each.unavailable() is None]


class Functional(nn.Module):
    """Calls ops by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(F.conv2d(images, self.weight), 2)


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))


class WithModel(nn.Module):
    """Has a child of the name that a routed model's has."""

    def __init__(self) -> None:
        super().__init__()
        self.model = layers()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


# the others are routed as these are
SOME = [name if name in ("torch", "native", "auto", "loops") else exhaustive(name) for name in AVAILABLE]
MODELS: list[Callable[[], nn.Module]] = [layers, Functional, WithModel, lambda: nn.Conv2d(3, 4, 3)]


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 9, 9)


def marked(*args: Any) -> Tensor:
    return F.conv2d(*args) + 1000


MARKED = Backend("marked", "not registered", lambda: {"conv2d": marked})

# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
def test_the_state_is_that_of_the_plain_model(make: Callable[[], nn.Module]) -> None:
    model, other = make(), make()
    routed = use_backend(model, "native")
    twice = use_backend(use_backend(model, "torch"), "native")
    for ours, theirs in (
        (routed, model),
        (twice, model),
        (
            nn.Sequential(nn.Linear(1, 1), routed, nn.Linear(1, 1)),
            nn.Sequential(nn.Linear(1, 1), model, nn.Linear(1, 1)),
        ),
    ):
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert ours.state_dict()._metadata == theirs.state_dict()._metadata
        for strict in (True, False):
            assert not any(ours.load_state_dict(theirs.state_dict(), strict=strict))
            assert not any(theirs.load_state_dict(ours.state_dict(), strict=strict))
    use_backend(other, "im2col").load_state_dict(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    first = next(iter(model.state_dict()))
    assert routed.state_dict(prefix="net.")[f"net.{first}"].equal(model.state_dict()[first])


def test_problems_of_a_state_are_named_as_the_plain_model_does() -> None:
    model = layers()
    routed = use_backend(model, "native")
    for network, plain in ((routed, model), (nn.ModuleList([routed]), nn.ModuleList([model]))):
        for state in ({}, {"0.junk": torch.zeros(1)}):
            ours, theirs = (each.load_state_dict(state, strict=False) for each in (network, plain))
            assert ours == theirs
    with pytest.raises(RuntimeError, match=r'"0\.weight"'):
        use_backend(layers(), "native").load_state_dict({})


def test_a_state_saved_with_the_names_of_before_is_taken() -> None:
    model = layers()
    state = {f"model.{name}": value + 1 for name, value in model.state_dict().items()}
    use_backend(model, "native").load_state_dict(state)
    assert torch.equal(model[0].weight, state["model.0.weight"])


def test_what_is_put_on_a_routed_model_is_saved_beside_the_models() -> None:
    routed = use_backend(layers(), "native")
    routed.register_buffer("extra", torch.ones(1))
    routed.head = nn.Linear(2, 2)
    assert {"extra", "head.weight", "0.weight"} <= set(routed.state_dict())
    state = {name: value + 1 for name, value in routed.state_dict().items()}
    routed.load_state_dict(state)
    for name, value in routed.state_dict().items():
        assert torch.equal(value, state[name])


# --- copies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", SOME)
def test_a_pickle_names_the_backend(name: str, make: Callable[[], nn.Module], images: Tensor) -> None:
    routed = use_backend(make(), name, fuse=True).eval()
    file = io.BytesIO()
    torch.save({"net": nn.Sequential(routed)}, file)
    file.seek(0)
    for loaded in (pickle.loads(pickle.dumps(routed)), torch.load(file, weights_only=False)["net"][0]):
        assert isinstance(loaded, Routed)
        assert (loaded.backend.name, loaded.fuse, loaded.training, loaded.calls) == (name, True, False, 0)
        torch.testing.assert_close(loaded(images), routed(images), rtol=1e-4, atol=1e-4)
        assert loaded.served == routed.served
        routed.reset_counts()


@pytest.mark.parametrize("backend", [MARKED, Backend("native", "another one", lambda: {"conv2d": marked})])
def test_a_pickle_of_a_backend_that_is_not_registered_is_refused(backend: Backend) -> None:
    with pytest.raises(
        UsageError, match=rf"backend '{backend.name}' is not registered .* save unroute\(model\)"
    ):
        pickle.dumps(use_backend(layers(), backend))


def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def test_a_copy_has_all_that_was_put_on_it(images: Tensor) -> None:
    routed = use_backend(layers(), MARKED).eval()
    routed.note, routed.head = ["a note"], nn.Linear(2, 2)
    routed.register_buffer("extra", torch.ones(1))
    routed.register_forward_hook(doubled)
    expected = routed(images)
    averaged = AveragedModel(routed)
    averaged.update_parameters(routed)
    assert torch.equal(averaged(images), expected)
    for copy in (deepcopy(routed), deepcopy(nn.Sequential(routed))[0]):
        assert torch.equal(copy(images), expected)
        assert (copy.backend, copy.training, copy.calls, copy.note) == (MARKED, False, 2, routed.note)
        for name, value in copy.state_dict().items():
            assert torch.equal(value, routed.state_dict()[name])
            assert value.data_ptr() != routed.state_dict()[name].data_ptr()
        assert copy.note is not routed.note


def test_unroute_gives_back_the_plain_model(images: Tensor) -> None:
    model = layers()
    assert unroute(use_backend(use_backend(model, "torch"), "native")) is model
    assert unroute(model) is model
    parts = nn.Sequential(
        use_backend(nn.Conv2d(3, 4, 3), MARKED), nn.Sequential(use_backend(nn.ReLU(), MARKED))
    )
    for network in (parts, use_backend(parts, "native")):
        assert unroute(network) is parts
        assert not any(isinstance(module, Routed) for module in parts.modules())
    assert parts(images).max() < 500


class Shared(nn.Module):
    """Has one weight by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Any:
        return self.second(self.first(images)) * self.scale


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("make", [layers, Functional, lambda: nn.Conv2d(3, 4, 3)])
def test_functional_calls_take_the_names_of_the_plain_model(
    make: Callable[[], nn.Module], fuse: bool, images: Tensor
) -> None:
    model = make().eval()
    others = {name: 2 * value.detach() for name, value in model.state_dict().items()}
    before = deepcopy(model.state_dict())
    right = functional_call(model, dict(others), (images,))
    for routed in (
        use_backend(model, "native", fuse=fuse),
        use_backend(use_backend(model, "native"), "im2col"),
    ):
        torch.testing.assert_close(
            functional_call(routed, dict(others), (images,)), right, rtol=1e-4, atol=1e-4
        )
        named = {name: 2 * value.detach() for name, value in routed.named_parameters()}
        named |= {name: 2 * value for name, value in routed.named_buffers()}
        torch.testing.assert_close(functional_call(routed, named, (images,)), right, rtol=1e-4, atol=1e-4)
    assert all(type(each) is nn.Parameter for each in model.parameters())
    assert not routed._parameters
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", ["first.weight", "scale"])
def test_functional_calls_of_tied_weights_take_the_names_of_the_routed_model(
    name: str, images: Tensor
) -> None:
    """torch finds tied weights by names; by the plain ones it would put one of them, and leave the other."""
    model = Shared()
    routed = use_backend(model, "native")
    others = {name: torch.ones_like(model.get_parameter(name))}
    with pytest.raises((AttributeError, UsageError), match=r"has no attribute|tied weights"):
        functional_call(routed, others, (images,))
    torch.testing.assert_close(
        functional_call(routed, {f"model.{name}": others[name]}, (images,)),
        functional_call(model, others, (images,)),
    )


def test_a_shallow_copy_has_the_same_model_and_counts_of_its_own(images: Tensor) -> None:
    def torchs(*args: Any) -> Tensor:
        return torch.conv2d(*args)

    routed = use_backend(layers(), Backend("unregistered", "", lambda: {"conv2d": torchs}))
    other = copied(routed)
    other(images)
    assert other.model is routed.model
    assert (other.calls, routed.calls) == (2, 0)


# --- compilers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", SOME)
def test_export_has_the_right_graph(name: str, make: Callable[[], nn.Module], images: Tensor) -> None:
    model = make().eval()
    program = torch.export.export(use_backend(model, name), (images,))
    for inputs in (images, images.flip(0)):
        torch.testing.assert_close(program.module()(inputs), model(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SOME)
def test_export_for_any_batch(name: str, images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2)).eval()  # not too small for `auto`
    batch = {0: torch.export.Dim("batch", min=2)}
    program = torch.export.export(use_backend(model, name), (images,), dynamic_shapes=((batch,),))
    inputs = torch.cat([images, images + 1, images])
    torch.testing.assert_close(program.module()(inputs), model(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", AVAILABLE)
def test_tracers_have_torchs_graph(name: str, make: Callable[[], nn.Module], images: Tensor) -> None:
    model = make().eval()
    routed = use_backend(model, name)
    forget_known_faults()  # so that the first of two traces looks them up, and not the second
    for traced in (
        torch.jit.trace(routed, images),
        make_fx(routed)(images),
        torch.fx.symbolic_trace(nn.Sequential(routed)),
    ):
        for inputs in (images, images.flip(0)):
            torch.testing.assert_close(traced(inputs), model(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_has_no_counting_in_it_and_is_not_counted(images: Tensor) -> None:
    routed = use_backend(Functional(), "native")
    traced, plain = (torch.jit.trace(each, images, check_trace=False) for each in (routed, routed.model))
    assert str(traced.inlined_graph).count("aten::") == str(plain.inlined_graph).count("aten::")
    assert routed.calls == 0
    routed(images)
    assert routed.served_flops_fraction == 1
    torch.jit.trace(routed, images)  # which compares the graphs of two traces


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_compiled_says_so() -> None:
    routed = use_backend(layers(), "native")
    for network in (routed, nn.Sequential(routed)):
        with pytest.raises(UsageError, match=r"torch.jit.script cannot .* unroute\(model\)"):
            torch.jit.script(network)
    assert isinstance(network[0], Routed)
    with pytest.raises(UsageError, match=r"torch.fx cannot trace .* unroute\(model\)"):
        torch.fx.symbolic_trace(routed)


def test_the_example_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(__file__).parents[3] / "docs" / "auto.md"
    (source,) = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(source, {})
