"""`fft`: correlation is a product in the frequency domain.

By the convolution theorem the spectrum of the output is that of the image times the conjugate of the
kernel's, summed over channels (Mathieu, Henaff and LeCun, "Fast training of convolutional networks through
FFTs", 2014). The transform is circular: with P x Q points, at least as many as the padded image has, what
wraps around lands only in rows and columns that are cut off. A dilated kernel is spread out with zeros; a
stride computes every position and keeps some.

Cost per output: with f = P·Q / (H'·W') points for every output, half of them known by symmetry, there are
C/groups·f/2 complex products, or 2·C/groups·f real multiplications, for kernels of any size. Each of the N·C +
O·C/groups + N·O planes has a transform of about 2.5·P·Q·log2(P·Q) flops. With many channels and a small batch, the
kernels' transforms take most of the time. A stride multiplies f by its square. The kernels' spectra take
O·C/groups·P·Q/2 complex numbers of memory.

Accuracy: errors spread over the image in proportion to its norm (Higham, "Accuracy and Stability of Numerical
Algorithms", 24.1), so a small output beside large ones has few right digits. Measured in float32 on random
images: a root mean square error of 0.7 to 3 times im2col's, and at most 1e-6 of the largest output with up to
512 channels.

Not supported: pooling, which is no product of spectra, and half precision, which torch transforms on CUDA only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convbench.registry import Backend, hookimpl
from convbench.registry.ops.window import IntPair, conv2d_window
from convbench.registry.records import Accuracy

if TYPE_CHECKING:
    from torch import Tensor

# A transform of n points has a relative error of about 0.6·u·√log2 n (root mean square). Three of them and one
# product make √(1 + 3·0.36·log2 n) times the error of a product alone: 4.3 for 256x256 points.
GROWTH = 5.0


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation: (N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
    import torch
    import torch.nn.functional as F

    window = conv2d_window(input, weight, bias, stride, padding, dilation, groups)
    if not (input.numel() and weight.numel()):  # not every build of torch transforms what is empty
        return _of_nothing(input, weight, bias, window.output_size)
    images, kernels = F.pad(input, window.pad), spread(weight, window.dilation)
    size = (fast_length(images.shape[-2]), fast_length(images.shape[-1]))
    image_spectra = torch.fft.rfft2(images, size).unflatten(1, (groups, -1))
    kernel_spectra = torch.fft.rfft2(kernels, size).unflatten(0, (groups, -1))
    spectra = torch.einsum("ngcpq,gocpq->ngopq", image_spectra, kernel_spectra.conj())
    positions = torch.fft.irfft2(spectra.flatten(1, 2), size)
    (height, width), (down, right) = window.output_size, window.stride
    output: Tensor = positions[..., : (height - 1) * down + 1 : down, : (width - 1) * right + 1 : right]
    return output.contiguous() if bias is None else output + bias[:, None, None]


def _of_nothing(input: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """The output of an empty batch, or of no channels: the bias alone, with gradients of zero to the others."""
    nothing = ((input.sum() + weight.sum()) * 0).expand(len(input), len(weight), *size)
    return nothing.contiguous() if bias is None else nothing + bias[:, None, None]


def spread(weight: Tensor, dilation: tuple[int, int]) -> Tensor:
    """The kernel with the zeros of its dilation written out: (O, C, kh, kw) -> (O, C, reach, reach)."""
    if dilation == (1, 1):
        return weight
    reach = [gap * (taps - 1) + 1 for gap, taps in zip(dilation, weight.shape[2:], strict=True)]
    kernels = weight.new_zeros(*weight.shape[:2], *reach)
    kernels[..., :: dilation[0], :: dilation[1]] = weight
    return kernels


def fast_length(length: int) -> int:
    """The next length that is a product of 2, 3 and 5 only, which transforms are fastest at."""
    while True:
        remainder = length
        for prime in (2, 3, 5):
            while remainder % prime == 0:
                remainder //= prime
        if remainder == 1:
            return length
        length += 1


def load() -> Mapping[str, Any]:
    return {"conv2d": conv2d}


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="fft",
        summary="multiply spectra: transform, one complex product per frequency, transform back",
        load=load,
        devices=("cpu", "cuda"),
        dtypes=("float32", "float64"),
        accuracy={"conv2d": Accuracy("normwise", growth=GROWTH)},
        second_order=("conv2d",),
    )
