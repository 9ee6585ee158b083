"""Training steps as a graph: the device's whole work for one step is recorded once, and then replayed.

A replay costs the host a few microseconds however many kernels a step has, which is most of the time of a small
network. What changes from step to step therefore lies on the device, where the step itself reads and advances it:
which images are next, the learning rate, the sum of the losses, the seed and offset of random numbers (which torch
registers with a capture by itself). An epoch is a shuffled order, written once, and then replays.

Batches of another size are other work: the last of an epoch, if it is smaller, has a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from convbench.suites.measure.amp import Amp
from convbench.suites.measure.data import Batches
from convbench.suites.measure.devices import capture

WARM_UP = 3  # steps before a capture, as torch advises: libraries choose and allocate at first use


class GraphedStep:
    """The training steps of one model, captured on its device.

    Raises:
        Unsupported: the device captures no graphs, or the step does what no graph can hold, such as reading a
            number back.
    """

    def __init__(
        self, model: nn.Module, data: Batches, *, lr: float, batch_size: int, amp: Amp | None = None
    ) -> None:
        self.batch_size = batch_size
        self._model, self._data, self._amp = model, data, amp or Amp()
        device = data.device
        self._optimizer = self._amp.sgd(model, lr, on_device=True) if data.grad_output is None else None
        self._order = torch.arange(len(data), device=device)
        self._next = torch.zeros((), dtype=torch.int64, device=device)
        self._total_loss = torch.zeros((), device=device)
        self._offsets = torch.arange(batch_size, device=device)
        self._captured: dict[int, Callable[[], None]] = {}

    def capture(self, *sizes: int) -> None:
        """Record a step of each of these batch sizes; the model, and what is counted, stay as they are."""
        self._model.train()
        before = {name: value.clone() for name, value in self._model.state_dict().items()}
        scale = self._amp.state()
        device = self._data.device
        devices = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
            for size in sizes:
                if size not in self._captured:
                    self._captured[size] = capture(device, partial(self._step, size), WARM_UP)
        self._model.load_state_dict(before)  # copies in place: these are the tensors of the graph
        self._amp.restore(scale)
        self.start(self._order)

    def start(self, order: Tensor) -> None:
        """Begin an epoch, which goes through the images in this order."""
        self._order.copy_(order)
        self._next.zero_()
        self._total_loss.zero_()

    def replay(self, size: int | None = None) -> None:
        """One more step; the host does not wait for it."""
        self._captured[self.batch_size if size is None else size]()

    def upcoming(self, size: int) -> Tensor:
        """Indices of the images that the next replay of this batch size takes."""
        return self._order.index_select(0, (self._next + self._offsets[:size]) % len(self._order))

    @property
    def total_loss(self) -> Tensor:
        """The sum of the losses since `start`, on the device."""
        return self._total_loss

    def _step(self, size: int) -> None:
        """What is captured: nothing in it may depend on the host."""
        x, y = self._data.batch(self.upcoming(size))
        with self._amp.autocast():
            objective = self._data.objective(self._model(x), y)
        self._forget_gradients(x)
        if self._optimizer is None:
            objective.backward(self._data.grad_output)
        else:
            self._amp.backward(objective)
            self._amp.update(self._optimizer)
            self._total_loss += objective.detach()
        self._next += size

    def _forget_gradients(self, inputs: Tensor) -> None:
        """Drop gradients, so that every replay writes new ones and adds to none."""
        inputs.grad = None
        for parameter in self._model.parameters():
            parameter.grad = None
