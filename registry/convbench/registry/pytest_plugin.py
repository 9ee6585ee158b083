"""For a plugin's own tests: `pytest` shows one test for each case of the contract.

    from convbench.registry.pytest_plugin import BackendConformance

    class TestFast(BackendConformance):
        backend = "fast"

pytest imports this module wherever convbench is installed; so that this costs nothing, what is heavy is imported
when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from convbench.registry.conformance.cases import Case
    from convbench.registry.conformance.report import Outcome
    from convbench.registry.records import Backend


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of conformance tests."""
    group = parser.getgroup("convbench")
    group.addoption(
        "--convbench-device",
        action="append",
        metavar="NAME",
        help="Run conformance tests on this torch device only; repeatable.",
    )
    group.addoption("--convbench-seed", type=int, default=0, help="Seed of their random data (default: 0).")


def convbench_cases(op: str) -> list[Case]:
    """The calls of `op` that every backend is held against, to parametrize tests of one's own with.

    Raises:
        UnknownName: no op of that name is in the contract.
    """
    from convbench.registry import OPS, UnknownName
    from convbench.registry.conformance.cases import conformance_cases

    if op not in OPS:
        raise UnknownName("op", op, OPS)
    return conformance_cases(op)


class BackendConformance:
    """Subclass it as `class TestMine(BackendConformance)`, and say which backend; the tests come along.

    Attributes:
        backend: the registered name.
        dtypes: those to test; every one the backend claims when None.
        generated: how many generated cases there are of every op, beside the curated ones; as many as
            `convbench verify` has when None.
    """

    backend: str
    dtypes: Iterable[str] | None = None
    generated: int | None = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for every device here, dtype and case; one that is skipped where there can be none."""
        for fixture in {"conformance_case", "refused_case", "torch_case"} & {*metafunc.fixturenames}:
            metafunc.parametrize(fixture, list(_parameters(self, metafunc.config, fixture)))

    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
    def test_it_is_right(self, conformance_case: Any) -> None:
        """Forward and gradients are the reference's."""
        from convbench.registry.conformance.verify import verify

        backend, device, dtype, case, seed = conformance_case
        outcomes = verify(
            backend, device=device, dtypes=[dtype], cases={case.op: [case]}, seed=seed, shrink=True
        ).outcomes
        for outcome in reversed(outcomes):  # what was tampered with comes last, and is told first
            _conclude(outcome)

    def test_it_refuses(self, refused_case: Any) -> None:
        """What torch refuses is refused."""
        from convbench.registry import OPS
        from convbench.registry.conformance.verify import check_refusal

        backend, device, dtype, case, _ = refused_case
        _conclude(check_refusal(backend, OPS[case.op], case, dtype, device))

    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
    def test_torch_takes_it(self, torch_case: Any) -> None:
        """Under `torch.compile` without a break in the graph, and what it registered passes `opcheck`."""
        from convbench.registry.integrity.opcheck import check_torch

        backend, device, dtype, op, seed = torch_case
        outcomes = list(check_torch(backend, op, dtype, device, seed))
        for outcome in sorted(outcomes, key=lambda outcome: outcome.state == "unsupported"):
            _conclude(outcome)

    def test_its_ops_are_in_the_contract(self) -> None:
        """A misspelt op would never be called."""
        from convbench.registry import OPS
        from convbench.registry.errors import choices

        for name in _found("backend", self.backend).ops:
            assert name in OPS, f"{name!r} is no op; {choices(name, OPS)}"


class ArchitectureConformance:
    """Subclass it as `class TestMine(ArchitectureConformance)`, and say which architecture.

    Attributes:
        architecture: the registered name.
        batch_size: of the images that are tried, small for a large network.
    """

    architecture: str
    batch_size = 2

    @pytest.mark.parametrize("num_classes", [10, 7])
    @pytest.mark.parametrize("in_channels", [1, 3])
    def test_it_maps_images_to_classes(self, num_classes: int, in_channels: int) -> None:
        """(N, in_channels, H, W) -> (N, num_classes), and finite."""
        import torch

        from convbench.registry import create_model

        record = _found("architecture", self.architecture)
        torch.manual_seed(0)
        model = create_model(record, num_classes=num_classes, in_channels=in_channels)
        images = torch.randn(self.batch_size, in_channels, *record.input_shape[1:])
        scores = model(images)
        assert tuple(scores.shape) == (self.batch_size, num_classes)
        assert scores.isfinite().all()

    def test_every_parameter_learns(self) -> None:
        """A gradient reaches each one, and none is zero throughout."""
        import torch

        from convbench.registry import create_model

        record = _found("architecture", self.architecture)
        torch.manual_seed(0)
        model = create_model(record, in_channels=record.input_shape[0])
        model(torch.randn(self.batch_size, *record.input_shape)).square().sum().backward()
        idle = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
        ]
        assert idle == [], f"no gradient reaches {', '.join(idle)}"

    def test_evaluation_repeats(self) -> None:
        """In evaluation mode, the same images have the same scores."""
        import torch

        from convbench.registry import create_model

        record = _found("architecture", self.architecture)
        model = create_model(record, in_channels=record.input_shape[0]).eval()
        images = torch.randn(self.batch_size, *record.input_shape)
        with torch.no_grad():
            torch.testing.assert_close(model(images), model(images))


def _calls(test: BackendConformance, fixture: str, backend: Backend, op: str, seed: int) -> list[Any]:
    """What the tests with that fixture are about, for one op."""
    from convbench.registry.conformance.cases import refused_calls
    from convbench.registry.conformance.report import GENERATED
    from convbench.registry.conformance.verify import whole_contract

    if fixture == "torch_case":
        return [op]
    if fixture == "refused_case":
        return refused_calls(op)
    return whole_contract(backend, op, GENERATED if test.generated is None else test.generated, seed)


def _parameters(test: BackendConformance, config: pytest.Config, fixture: str) -> Iterator[Any]:
    from convbench.registry import OPS

    backend = _found("backend", test.backend)
    if reason := backend.unavailable():
        yield _skipped("unavailable", reason)
        return
    seed: int = config.getoption("convbench_seed", default=0)  # without the entry point, there are no options
    for device in config.getoption("convbench_device", default=None) or backend.devices:
        if not _is_here(device):
            yield _skipped(device, f"there is no {device} device here")
            continue
        for op in filter(OPS.__contains__, backend.ops):
            for dtype in test.dtypes or backend.dtypes_on(device):
                for call in _calls(test, fixture, backend, op, seed):
                    yield pytest.param((backend, device, dtype, call, seed), id=f"{device}-{dtype}-{call}")


def _conclude(outcome: Outcome) -> None:
    """Skip what is unsupported; fail with the Python that shows a failure, unless a known fault explains it."""
    if outcome.state == "unsupported":
        pytest.skip(outcome.message)
    if outcome.is_failure and outcome.known_fault:
        pytest.xfail(f"{outcome.known_fault}: {outcome.message}")
    if outcome.state != "passed":
        lines = [f"{outcome.state}: {outcome.text}"]
        if outcome.shrunk_from:
            lines = [f"{outcome.state}, and so does the smaller {outcome.case}: {outcome.text}"]
        lines += ["", outcome.reproduction] if outcome.reproduction else []
        pytest.fail("\n".join(lines), pytrace=False)


def _skipped(name: str, reason: str) -> Any:
    return pytest.param(None, id=name, marks=pytest.mark.skip(reason=reason))


def _is_here(device: str) -> bool:
    import torch

    here = torch.accelerator.current_accelerator(check_available=True)
    return torch.device(device).type in ("cpu", here.type if here else "cpu")


def _found(kind: Literal["backend", "architecture"], name: str) -> Any:
    """The record of that name; fails with the errors of the plugins that could not be used, for one may be its."""
    from convbench.registry import UsageError, discover

    registry = discover()
    try:
        return registry.backend(name) if kind == "backend" else registry.architecture(name)
    except UsageError as error:
        broken = [f"plugin {plugin.name!r} is not used: {plugin.error}" for plugin in registry.broken]
        pytest.fail("\n".join([str(error), *broken]), pytrace=False)
