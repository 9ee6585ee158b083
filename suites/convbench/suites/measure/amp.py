"""Training in half precision: float32 weights, products by autocast, and in float16 gradients that are scaled.

float16 has no number below 6e-8, and small gradients would vanish: the loss is multiplied by a scale first, the
update divides by it and is left out where a gradient overflowed, and the scale follows. All of that stays on the
device: torch's fused optimizer looks at the overflow itself, so that no step waits for a number to be read back.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Amp:
    """Autocast and gradient scaling of one training. Without a dtype, nothing is cast and nothing scaled."""

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        self._device = device or torch.device("cpu")
        self.dtype = dtype
        self._scaler = torch.amp.GradScaler(self._device.type) if dtype == torch.float16 else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass and its loss."""
        return torch.autocast(self._device.type, self.dtype) if self.dtype is not None else nullcontext()

    def backward(
        self, objective: Tensor, grad_output: Tensor | None = None, retain_graph: bool | None = None
    ) -> None:
        """Leave a gradient in every parameter, times the scale where there is one."""
        scaled = objective if self._scaler is None else self._scaler.scale(objective)
        scaled.backward(grad_output, retain_graph)

    @property
    def scale(self) -> float:
        """What gradients are multiplied by."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def update(self, optimizer: Any) -> None:
        """Take the optimizer's step."""
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def sgd(self, model: nn.Module, lr: float, *, on_device: bool = False) -> torch.optim.SGD:
        """Plain SGD; with the learning rate in a tensor of the device where a captured step has to read it."""
        if not on_device and self._scaler is None:
            return torch.optim.SGD(model.parameters(), lr=lr)
        rate = torch.tensor(lr, device=next(model.parameters()).device) if on_device else lr
        return torch.optim.SGD(model.parameters(), lr=rate, fused=True)

    def state(self) -> dict[str, Any]:
        """What a step changes here, for `restore`."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Set everything back to a `state`."""
        if self._scaler is not None and self._scaler.is_enabled():
            scale: Any = self._scaler
            if scale._scale is None:  # nothing was scaled yet
                self._scaler.load_state_dict(state)
            else:  # in place: a captured step reads and writes these very tensors
                scale._scale.fill_(state["scale"])
                scale._growth_tracker.fill_(state["_growth_tracker"])
