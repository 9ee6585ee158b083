"""What a wrong result or an exception has to say about its cause, in a few words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from convbench.registry.conformance.reference import OUTPUT
from convbench.registry.discovery.plugins import describe

CLOSE = 1e-3  # of the largest value: what counts as the same number here
EXPLAINED = 0.01  # of an error: what may remain of it where something accounts for it
AXES = ("image", "channel", "row", "column")  # of an output, and of an input's gradient
AXES_OF_WEIGHTS = ("filter", "channel", "row", "column")
PRECISIONS = {"bfloat16": 8, "float16 and TF32": 11}  # significant bits
LONGEST = 300  # characters of an exception's text


def diagnose(name: str, answer: Tensor, exact: Tensor, wrong: Tensor) -> str:
    """A clause that begins with `: `, or nothing.

    Args:
        name: of the tensor, such as `output` or `gradient of weight`: what its axes are.
        answer: what was given.
        exact: what is right, float64, of the same shape.
        wrong: which elements are inadmissible.
    """
    answer = answer.detach().double()
    return next((f": {words}" for words in _findings(name, answer, exact, wrong)), "")


def _findings(name: str, answer: Tensor, exact: Tensor, wrong: Tensor) -> Iterator[str]:
    """What fits, the most telling first."""
    if answer[wrong].isnan().all() and not exact.isnan().any():
        yield "these elements are not numbers, as memory that was never written to is filled with here"
    if not (answer.isfinite().all() and exact.isfinite().all()):
        return
    size = float(exact.abs().max())
    if not size:
        return
    if not answer.any():
        yield "it is zero everywhere"
    elif answer.numel() > 1 and float(answer.max() - answer.min()) <= CLOSE * size:
        yield "it is the same number everywhere"
    yield from _places(wrong, AXES_OF_WEIGHTS if name.endswith(" of weight") else AXES)
    difference = answer - exact
    most = float(difference.abs().max())
    factor = float((answer * exact).sum() / exact.square().sum().clamp_min(1e-300))
    if float((answer - factor * exact).abs().max()) <= EXPLAINED * most:
        if abs(factor - 1) < 0.005:  # 1 to three digits
            yield f"every element is off by the same share, {factor - 1:+.1e} of what is right"
        else:
            yield f"it is {factor:.3g} times what is right, throughout"
    if name == OUTPUT and exact.dim() == 4 and exact[:, 0].numel() > 1:  # no gradient has a bias added
        spread = difference.amax(dim=(0, 2, 3)) - difference.amin(dim=(0, 2, 3))
        if float(spread.max()) <= EXPLAINED * most:
            yield "it is off by one number in each channel, as without its bias"
    bits = -math.log2(most / size)
    for name, precision in PRECISIONS.items():
        if precision - 2.5 <= bits <= precision + 1.5:
            yield f"right to about {bits:.0f} bits, as {name} would be ({precision} bits)"


def _places(wrong: Tensor, axes: Sequence[str]) -> Iterator[str]:
    """The axis along which only one end is wrong."""
    if wrong.dim() != 4:
        return
    for axis in (2, 3, 1, 0):
        length = wrong.shape[axis]
        hit = torch.nonzero(wrong.any(dim=[other for other in range(4) if other != axis])).flatten().tolist()
        first, last = hit[0], hit[-1]
        if len(hit) == last - first + 1 and len(hit) <= length / 2 and (first == 0 or last == length - 1):
            end = "first" if first == 0 else "last"
            many = f"{len(hit)} {axes[axis]}s are" if len(hit) > 1 else f"{axes[axis]} is"
            yield f"only the {end} {many} wrong"


def crash_message(error: BaseException) -> str:
    """An exception in one short line; for one of torch's compiler, the reason and the line where it stopped."""
    text = describe(error)
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch")):
        text = _compiler_message(str(error)) or text
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _compiler_message(text: str) -> str:
    """What torch's compiler did not take: its texts have the reason first or last, and pages of advice between."""
    report, _, user_code = text.partition("from user code:")
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    reason = lines[0] if lines else ""
    if reason.endswith("raised:") and len(lines) > 1:  # a compiler behind dynamo
        reason = lines[1]
    inner = re.search(r"\bgot (\w+)\((['\"])(.*?)\2\)(?= Hint:|$)", " ".join(lines))
    if inner is not None:  # the arguments of the call, page after page, come before it
        reason = f"{inner[1]}: {inner[3]}"
    stopped = re.findall(r'File "([^"]+)", line (\d+)', user_code)
    where = f" ({stopped[-1][0]}, line {stopped[-1][1]})" if stopped else ""
    return f"torch.compile: {reason}{where}" if reason else ""
