"""What one op of the contract is; `convbench.registry.ops.contract` has them all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Op:
    """One op of the contract.

    Attributes:
        name: as in `Backend.ops`.
        reference: the definition, in torch; outputs are compared with its result in float64.
        functions: the torch functions whose calls this op can serve; a fused op stands for several of them.
        modules: the `torch.nn` modules that make such calls.
        tensors: the differentiable tensor arguments.
        multilinear: linear in each tensor argument; otherwise a selection among the input's values, or fused.
        of_squares: the sum of the squares of the terms that `reference` sums, from tensors of squares; it bounds
            rounding errors (see `convbench.registry.conformance.tolerances`).
        flops: floating-point operations of a call, from its output and its arguments.
        reduction: how many terms are summed into one output, from the arguments by name.
        base: of a fused op, the one without its activation; of a `chain`, the one that its layers begin with.
        activated: of a fused op, whether its activation is that of the input or that of the output.
        pooled: of a fused op that ends with a pooling, that pooling.
        chain: of a fused op, whether it is any number of layers; see `convbench.registry.ops.sequential`.
    """

    name: str
    reference: Callable[..., Tensor]
    functions: tuple[Callable[..., Any], ...]
    modules: tuple[str, ...]
    tensors: tuple[str, ...]
    multilinear: bool
    of_squares: Callable[..., Tensor]
    flops: Callable[..., int]
    reduction: Callable[[Mapping[str, Any]], int]
    base: Op | None = None
    activated: Literal["input", "output", ""] = ""
    pooled: Op | None = None
    chain: bool = False

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.reference)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, defaults filled in."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    @cached_property
    def multiplies(self) -> bool:
        """Whether it sums products with weights."""
        return any(name.startswith("weight") for name in self.tensors)

    def factor_error(self, off: float) -> float:
        """The relative error `off` of the factors of products, for ops that multiply; 0 for others."""
        return off if self.multiplies else 0.0

    def on_meta(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """The arguments and the output of a call as shapes alone, which cost nothing."""
        shapes = {
            name: value.detach().to("meta") if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        return shapes, self.reference(**shapes)
