"""One training over several processes: a rank's share of a batch, the mean gradient, batch norm over all ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convbench.suites.measure.data import Batches, ImageBatches


class Ranks:
    """The processes that train together, as one of them sees them; a process that is alone is rank 0 of 1.

    `exchanges` counts what this one has begun with the others. `mark` is called when all gradients of a backward
    pass are there, and their mean over all ranks is not.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, control: Any = None, tensors: Any = None) -> None:
        """Take the process groups for decisions, and for tensors on the device of the training."""
        self.rank, self.world_size = rank, world_size
        self._control, self._tensors = control, tensors
        self.exchanges = 0
        self.mark: Callable[[], None] = lambda: None

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.world_size == 1

    def all(self, value: bool) -> bool:
        """Whether it is true in every rank: all of them must take the same turn."""
        if self.alone:
            return value
        return self.sums(float(value))[0] == self.world_size

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all(True)

    def mean(self, value: float) -> float:
        """The mean over ranks."""
        return value if self.alone else self.sums(value)[0] / self.world_size

    def sums(self, *values: float) -> list[float]:
        """The sum of each of these numbers over the ranks."""
        if self.alone:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        self.exchanges += 1
        dist.all_reduce(numbers, group=self._control)
        return numbers.tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """The tensor, which becomes the sum over ranks."""
        self.exchanges += 1
        dist.all_reduce(tensor, group=self._tensors)
        return tensor


class ShareOfBatches:
    """Batches of which each rank takes its share; the mean of the ranks' objectives is that of the whole batch."""

    grad_output = None

    def __init__(self, whole: Batches, ranks: Ranks) -> None:
        self._whole, self._ranks = whole, ranks
        self._weight = 1.0

    @property
    def device(self) -> torch.device:
        return self._whole.device

    def __len__(self) -> int:
        return len(self._whole)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The images of this rank; one that counts for nothing where there are fewer images than ranks."""
        own = index.tensor_split(self._ranks.world_size)[self._ranks.rank]
        self._weight = len(own) * self._ranks.world_size / len(index)
        return self._whole.batch(own if len(own) else index[:1])

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        objective = self._whole.objective(outputs, targets)
        return objective if self._weight == 1 else objective * self._weight

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self._whole.score(outputs, targets)


def share_of_images(data: Batches, ranks: Ranks) -> Batches:
    """Every so many-th image, for an evaluation that the ranks divide among them."""
    if ranks.alone or not isinstance(data, ImageBatches):
        return data
    own = slice(ranks.rank, None, ranks.world_size)
    return replace(data, images=data.images[own], labels=data.labels[own])


def trained_images(images: int, batch_size: int, ranks: Ranks) -> int:
    """How many of the images of an epoch this rank has had: its share of whole batches, and of the last one."""
    whole, rest = divmod(images, batch_size)
    own = rest // ranks.world_size + (ranks.rank < rest % ranks.world_size)
    return whole * batch_size // ranks.world_size + own


def together(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model with gradients that are the mean over all ranks, and batch norms over all their images."""
    if ranks.alone:
        return model
    with warnings.catch_warnings(action="ignore"):  # torch 2.14 has another name for it, and 2.11 has not
        wrapped = nn.parallel.DistributedDataParallel(
            model, device_ids=None if device.type == "cpu" else [device], broadcast_buffers=False
        )
    # DDP takes no hook whose annotations are texts
    wrapped.register_comm_hook(ranks, lambda ranks, bucket: _mean_gradients(ranks, bucket))
    norms = [module for module in model.modules() if isinstance(module, _BatchNormOfRanks)]

    def connect(to: Ranks | None) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            for norm in norms:
                norm.ranks = to

        return hook

    if norms:  # only in this very pass: other steps of the model, such as an audit's, are this process's own
        wrapped.register_forward_pre_hook(connect(ranks))
        wrapped.register_forward_hook(connect(None), always_call=True)
    return wrapped


def _mean_gradients(ranks: Ranks, bucket: Any) -> torch.futures.Future[Tensor]:
    if bucket.is_last():
        ranks.mark()
    ranks.exchanges += 1
    gradients = bucket.buffer().div_(ranks.world_size)
    work: Any = dist.all_reduce(gradients, async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def with_norms_of_ranks(model: nn.Module) -> nn.Module:
    """The same model, whose batch norms can be taken over all ranks; torch's own can do that on GPUs only."""
    for module in model.modules():
        if type(module) in _OF_RANKS:
            module.__class__ = _OF_RANKS[type(module)]
    return model


def has_norms_of_ranks(model: nn.Module) -> bool:
    """Whether it has a batch norm that is taken over all ranks."""
    return any(isinstance(module, _BatchNormOfRanks) for module in model.modules())


class _BatchNormOfRanks(_BatchNorm):
    """A batch norm whose mean and variance are those of the images of all ranks, while it has any."""

    ranks: Ranks | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.ranks is None or not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        wide = input.float() if input.dtype.itemsize < 4 else input
        mean, variance, count = _moments(wide, self.ranks)
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        shape = (1, -1, *[1] * (input.dim() - 2))
        normal = (wide - mean.view(shape)) * (scale if self.weight is None else scale * self.weight).view(
            shape
        )
        return (normal if self.bias is None else normal + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), part)
        self.running_var.lerp_(variance.to(self.running_var.dtype), part)


class _BatchNorm1d(_BatchNormOfRanks, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_BatchNormOfRanks, nn.BatchNorm2d):
    pass


class _BatchNorm3d(_BatchNormOfRanks, nn.BatchNorm3d):
    pass


_OF_RANKS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.BatchNorm3d: _BatchNorm3d,
}


def _moments(input: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel over the images of all ranks, and of how many numbers."""
    dims = [dim for dim in range(input.dim()) if dim != 1]
    variance, mean = torch.var_mean(input, dim=dims, correction=0)
    count = mean.new_full((1,), input.numel() / len(mean))
    own = torch.cat([mean, variance, count])
    nothing = torch.zeros_like(own)
    rows = torch.stack([own if rank == ranks.rank else nothing for rank in range(ranks.world_size)])
    means, variances, counts = _Sum.apply(rows, ranks).split([len(mean), len(mean), 1], dim=1)
    count = counts.sum()
    share = counts / count
    mean = (share * means).sum(dim=0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(dim=0), count


class _Sum(torch.autograd.Function):
    """The sum over ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum_tensor(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum_tensor(gradients[0].clone(memory_format=torch.contiguous_format)), None
