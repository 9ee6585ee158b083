"""What a wrong result or an exception has to say about its cause, in a few words.

A wrong result is compared with those of usual mistakes, such as an option that is ignored: where it equals one of
them, `Suspects` names the mistake. `diagnose` describes what the wrong elements have in common.
"""

from __future__ import annotations

import math
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from traceback import walk_tb
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry.conformance.reference.answers import OUTPUT
from convbench.registry.discovery.plugins import describe
from convbench.registry.ops.fused import pooling_of
from convbench.registry.ops.op import Op
from convbench.registry.ops.window import conv2d_window, pair

CLOSE = 1e-3  # of the largest value: what counts as the same number here
EXPLAINED = 0.01  # of an error: what may remain of it where something accounts for it
AXES = ("image", "channel", "row", "column")  # of an output, and of an input's gradient
AXES_OF_WEIGHTS = ("filter", "channel", "row", "column")
PRECISIONS = {"bfloat16": 8, "float16 and TF32": 11}  # significant bits
LOST_IN_PADDING = (
    "in the gradient of input, that of a window of minus infinities is lost: of equals the first pixel has it, "
    "and no padding"
)
UNKNOWN = "no usual mistake explains it, look at the case below"
WRONG_SHAPE = (
    "the output has a wrong shape: (size + 2*padding - dilation*(kernel - 1) - 1) // stride + 1 is right"
)
NUMBER_OF_GRADIENTS = (
    "backward returns another number of values: one for each argument of forward, None for options"
)
GRADIENT_SHAPE = "backward returns a gradient of a wrong shape: it is that of the tensor itself"
LONGEST = 300  # characters of an exception's text
LIBRARIES = (*torch.__path__, sysconfig.get_path("stdlib"))
FRAMEWORKS = ("torch.", "convbench.registry.", "functools.", "contextlib.")


def diagnose(name: str, answer: Tensor, exact: Tensor, wrong: Tensor) -> str:
    """A clause that begins with `: `, or nothing.

    Args:
        name: of the tensor, such as `output` or `gradient of weight`: what its axes are.
        answer: what was given.
        exact: what is right, float64, of the same shape.
        wrong: which elements are inadmissible.
    """
    return next((f": {words}" for words in _findings(name, answer.detach(), exact, wrong)), "")


def _findings(name: str, answer: Tensor, exact: Tensor, wrong: Tensor) -> Iterator[str]:
    """What fits, the most telling first."""
    if answer[wrong].isnan().all() and not exact.isnan().any():
        yield "these elements are not numbers, as memory that was never written to is filled with here"
    symptoms = list(_symptoms(name, answer, exact))
    yield from (words for words in symptoms if words.endswith("everywhere"))
    if answer.isfinite().all() and exact.isfinite().all() and exact.any():
        for end, axis, count in _places(wrong, axes_of(name)):
            yield f"only the {end} {f'{count} {axis}s are' if count > 1 else f'{axis} is'} wrong"
    yield from symptoms


def _symptoms(name: str, answer: Tensor, exact: Tensor) -> Iterator[str]:
    """What a wrong answer as a whole looks like, beside infinities and NaN that are right."""
    rounding, finite = torch.finfo(answer.dtype).eps, exact.isfinite()
    if not torch.equal(answer.isfinite(), finite):
        return
    answer, exact = (each.double().masked_fill(~finite, 0.0) for each in (answer, exact))
    difference = answer - exact
    size, most = float(exact.abs().max()), float(difference.abs().max())
    if not size or not most:
        return
    if not answer.any():
        yield "it is zero everywhere"
    elif answer.numel() > 1 and float(answer.max() - answer.min()) <= CLOSE * size:
        yield "it is the same number everywhere"
    factor = float((answer * exact).sum() / exact.square().sum().clamp_min(1e-300))
    if float((answer - factor * exact).abs().max()) <= min(EXPLAINED * most + rounding * size, most / 10):
        if abs(factor - 1) < 0.005:  # 1 to three digits
            yield f"every element is off by the same share, {factor - 1:+.1e} of what is right"
        elif answer.numel() > 1 or _is_round(factor):  # of a single element, any factor fits
            yield f"it is {factor:.3g} times what is right, throughout"
    if name == OUTPUT and exact.dim() == 4 and exact[:, 0].numel() > 1:  # no gradient has a bias added
        spread = difference.amax(dim=(0, 2, 3)) - difference.amin(dim=(0, 2, 3))
        if float(spread.max()) <= EXPLAINED * most:
            yield "it is off by one number in each channel, as without its bias"
    bits = -math.log2(most / size)
    for name, precision in PRECISIONS.items():
        if precision - 2.5 <= bits <= precision + 1.5:
            yield f"right to about {bits:.0f} bits, as {name} would be ({precision} bits)"


def _is_round(factor: float) -> bool:
    """Whether it is a whole number, or one over a whole number."""
    whole = round(factor if abs(factor) > 1 else 1 / (factor or math.inf))
    return bool(whole) and min(abs(factor - whole), abs(factor - 1 / whole)) < CLOSE


def axes_of(name: str) -> Sequence[str]:
    """What the axes of the tensor of that name are."""
    return AXES_OF_WEIGHTS if name.endswith(" of weight") else AXES


def _places(wrong: Tensor, axes: Sequence[str], dense: bool = False) -> Iterator[tuple[str, str, int]]:
    """The axis along which only one end is wrong, which end, and how far; `dense`: most of its elements are."""
    if wrong.dim() != 4:
        return
    for axis in (2, 3, 1, 0):
        length = wrong.shape[axis]
        hit = torch.nonzero(wrong.any(dim=[other for other in range(4) if other != axis])).flatten().tolist()
        first, last = hit[0], hit[-1]
        at_one_end = (
            len(hit) == last - first + 1 and len(hit) <= length / 2 and (first == 0 or last == length - 1)
        )
        if at_one_end and (not dense or wrong.sum() > wrong.numel() * len(hit) / length / 2):
            yield ("first" if first == 0 else "last"), axes[axis], len(hit)


def _explains(made: Tensor, answer: Tensor, exact: Tensor) -> bool:
    """Whether an answer is much closer to that of a mistake than to the right one."""
    if not answer.numel():
        return answer.shape != exact.shape
    rounding = torch.finfo(answer.dtype).eps
    answer = answer.double()
    finite = answer.isfinite() & made.isfinite()
    if answer.shape == exact.shape:
        finite &= exact.isfinite()
        off = (answer - exact)[finite].abs()
    else:
        off = answer[finite].abs()
    if not finite.any() or not torch.equal(answer.isfinite(), made.isfinite()):
        return False
    slack = EXPLAINED * off.max() + rounding * made[finite].abs().max()
    return bool((answer - made)[finite].abs().max() <= torch.minimum(slack, off.max() / 2))


@dataclass(frozen=True)
class Suspects:
    """A call and the gradient of its output, to compare wrong answers with those of usual mistakes."""

    op: Op
    call: Mapping[str, Any]
    grad_output: Tensor

    def cause(self, name: str, answer: Tensor, exact: Tensor, wrong: Tensor) -> str:
        """The mistake that explains a wrong answer, and what to do; nothing where none does.

        Args:
            name: of the answer, such as `output` or `gradient of weight`.
            answer: what was given.
            exact: what is right, float64.
            wrong: which elements are inadmissible; all of them where the shape is another one.
        """
        found = next(self._matching(name, answer.detach(), exact), "")
        if found and name != OUTPUT:
            return f"in the {name}, {found}"
        if found:
            return found
        if answer.shape != exact.shape:
            return WRONG_SHAPE
        if bool((answer[wrong].isnan() & ~exact[wrong].isnan()).all()):
            return f"the {name} is not written everywhere: check the bounds of the loops"
        if name == "gradient of input" and bool(self.call["input"][wrong].isneginf().all()):
            return LOST_IN_PADDING
        first = int(wrong.flatten().nonzero()[0])
        if first >= 1 << 15 and first & (first - 1) == 0:
            return f"the {name} is wrong from element {first} on: do indices overflow?"
        if end := next(_places(wrong, axes_of(name), dense=True), None):
            return f"the {name} is wrong at its {end[0]} {end[1]}s only: check the bounds there"
        words = next(_symptoms(name, answer.detach(), exact), UNKNOWN)
        return f"the {name} is wrong: {words}"

    def _matching(self, name: str, answer: Tensor, exact: Tensor) -> Iterator[str]:
        """The mistakes with this answer."""
        for mistake, made in self._answers(name):
            fits = made.dim() == answer.dim() == 4 and all(map(int.__ge__, made.shape, answer.shape))
            if fits and answer.numel():  # an empty answer would match every mistake
                made = made[..., : answer.shape[2], : answer.shape[3]]  # the windows that there is room for
            if made.shape == answer.shape and _explains(made, answer, exact):
                yield mistake

    def _answers(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Mistakes, and the answer of that name that each one has."""
        argument = name.removeprefix("gradient of ")
        if name != OUTPUT and not isinstance(self.call.get(argument), Tensor):
            return
        with torch.enable_grad():
            leaves = {
                key: value.detach().double().requires_grad_() if isinstance(value, Tensor) else value
                for key, value in self.call.items()
            }
            calls = [(mistake, self.op.reference, change) for mistake, change in _mistakes(self.op, leaves)]
            if self.op.base is not None and not self.op.chain:
                calls.append(
                    ("the activation is not applied: apply it as well", self._without_activation, {})
                )
            for mistake, reference, change in calls:
                try:
                    output = reference(**{**leaves, **change})
                except (RuntimeError, ValueError):
                    continue  # torch refuses it
                if name == OUTPUT:
                    yield mistake, output.detach()
                    continue
                height, width = map(min, zip(output.shape[2:], self.grad_output.shape[2:], strict=True))
                common = ..., slice(height), slice(width)
                (gradient,) = torch.autograd.grad(
                    output[common], leaves[argument], self.grad_output.double()[common], allow_unused=True
                )
                if gradient is not None:
                    yield mistake, gradient

    def _without_activation(self, activation: str, **arguments: Any) -> Tensor:
        assert self.op.base is not None
        if self.op.pooled is None:
            return self.op.base.reference(**arguments)
        window = pooling_of(arguments)
        return self.op.pooled.reference(self.op.base.reference(**arguments), **window)

    def cause_of_shape(self, shape: tuple[int, ...], right: tuple[int, ...]) -> str:
        """The mistake that explains the shape of a gradient, that of the input above all."""
        padding, image = self.call.get("padding", 0), tuple(self.call["input"].shape)
        if isinstance(padding, str) or right != image or shape[:2] != image[:2]:
            return GRADIENT_SHAPE
        down, across = pair(padding, "padding")
        if shape[2:] == (image[2] + 2 * down, image[3] + 2 * across):
            return (
                "in the gradient of input, the padding is not cut off: return the pixels of the image alone"
            )
        if shape[2:] == (image[2] + 2 * (down - across), image[3] + 2 * (across - down)):
            return f"in the gradient of input, {_swapped('padding')}"
        return GRADIENT_SHAPE


def _swapped(name: str) -> str:
    return f"the two numbers of {name} are swapped: the first is for rows, the second for columns"


def _mistakes(op: Op, call: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Usual mistakes with an op, what to do instead, and the arguments of the call that would give the same."""
    input, weight, padding = call["input"], call.get("weight"), call.get("padding", 0)
    for name, usual, advice in (
        ("stride", 1, "step from window to window by it"),
        ("padding", 0, "pad the image on all four sides"),
        ("dilation", 1, "it is the distance between neighbours in a window"),
        ("kernel_size", None, ""),
    ):
        value = call.get(name)
        if value is None or isinstance(value, str):
            continue
        down, across = pair(value, name)
        if usual is not None and (down, across) != (usual, usual):
            yield f"{name} is ignored: {advice}", {name: usual}
        if down != across:
            yield _swapped(name), {name: (across, down)}
    if "kernel_size" in op.signature.parameters and call.get("stride") is None:
        yield "stride=None is taken for 1: it stands for kernel_size", {"stride": 1}
    if padding == "same" and weight is not None:
        yield "padding is ignored: pad the image on all four sides", {"padding": 0}
        dilation, groups = call.get("dilation", 1), call.get("groups", 1)
        left, right, top, bottom = conv2d_window(input, weight, None, 1, padding, dilation, groups).pad
        moved = F.pad(input, (right, left, bottom, top))
        yield (
            "the odd pixel of padding='same' is at the start: it belongs at the end",
            {
                "input": moved,
                "padding": 0,
            },
        )
    if call.get("ceil_mode"):
        yield "ceil_mode is ignored: round the size of the output up", {"ceil_mode": False}
    if call.get("divisor_override") is not None:
        yield "divisor_override is ignored: divide by it", {"divisor_override": None}
    if "count_include_pad" in op.signature.parameters:
        if call.get("count_include_pad", True):
            advice = "padding is not counted: count_include_pad=True divides by all pixels of a window"
        else:
            advice = "count_include_pad=False is ignored: divide by the pixels that are no padding"
        yield advice, {"count_include_pad": not call.get("count_include_pad", True)}
    if "max_pool2d" in op.name and padding != 0 and weight is None:
        down, across = pair(padding, "padding")
        padded = F.pad(input, (across, across, down, down))
        yield "padding takes part in the maximum: pad with -inf, not with 0", {"input": padded, "padding": 0}
    if weight is not None:
        yield from _mistakes_with_weights(input, weight, call.get("bias"), call.get("groups", 1))


def _mistakes_with_weights(
    input: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    if bias is not None:
        yield "bias is not added: add bias[:, None, None] to the output", {"bias": None}
    if groups > 1:
        first = {"input": input[:, : weight.shape[1]], "groups": 1}
        yield "groups is ignored: the filters of a group see its own channels only", first
        advice = "the channels of groups are mixed up: a group has channels that follow each other"
        if weight.shape[1] > 1:
            mixed = input.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)
            yield advice, {"input": mixed}
        filters = weight.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)
        yield (
            "the filters of groups are mixed up: a group has filters that follow each other",
            {"weight": filters},
        )
    if weight.shape[2:].numel() > 1:
        yield "the kernel is flipped: torch's convolution does not flip it", {"weight": weight.flip(-2, -1)}
        turned = {"weight": weight.transpose(-2, -1)}
        yield "rows and columns of the kernel are swapped: a weight is (filter, channel, row, column)", turned
    for axis, name in ((2, "row"), (3, "column")):
        length = weight.shape[axis]
        if length > 1:
            kept = torch.arange(length).view(-1, *[1] * (3 - axis)) < length - 1
            advice = f"the last {name} of the kernel is left out: check the bounds of the loop over it"
            yield advice, {"weight": weight * kept.to(weight)}


def crash_message(error: BaseException) -> str:
    """An exception in one short line, and where it was raised; of torch's compiler, why and where it stopped."""
    text, where = describe(error), ""
    compilers = ("torch._dynamo", "torch._inductor", "torch._functorch")
    if type(error).__module__.startswith(compilers) or "\nfrom user code:" in str(error):
        text = _compiler_message(str(error)) or text
    else:
        where = _raised_at(error)
    if isinstance(error, SystemExit):
        text = f"it called sys.exit({error.code!r})"
    if len(text) > LONGEST:  # the beginning has its kind, and the end often the reason
        text = f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
    return text + where


def _raised_at(error: BaseException) -> str:
    """The last line of a plugin that an exception passed through."""
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        if not f"{frame.f_globals.get('__name__')}.".startswith(FRAMEWORKS):
            return f" ({frame.f_code.co_filename}, line {line})"
    return ""


def crash_cause(error: BaseException) -> str:
    """What an exception of a plugin is about, and what to do."""
    text = str(error)
    if "being used in an in-place operation" in text or "written-to tensor refers to a single memory" in text:
        return "an argument is changed in place: work on a copy, such as input.clone()"
    if "You must implement either the backward" in text:
        return "there is no backward: write one, or let derived_backward make it of the forward"
    name = type(error).__name__
    return f"it raises {name} where torch answers: raise Unsupported for calls that it does not implement"


INVALID_GRADIENT = re.compile(
    r"invalid gradient at index \d+ - got (\[.*?\]) but expected shape compatible with (\[.*?\])"
)


def backward_fault(error: Exception, suspects: Suspects) -> tuple[str, str]:
    """What a backward did wrong that torch's engine refuses, and its cause; nothing for other exceptions."""
    text = str(error)
    if shapes := INVALID_GRADIENT.search(text):
        given, right = (tuple(map(int, re.findall(r"\d+", each))) for each in shapes.groups())
        names = [
            name
            for name in suspects.op.tensors
            if isinstance(suspects.call.get(name), Tensor) and suspects.call[name].shape == right
        ]
        name = f"gradient of {' or '.join(names)}" if names else "gradient"
        return f"the {name} has shape {given}, not {right}", suspects.cause_of_shape(given, right)
    if numbers := re.search(r"incorrect number of gradients \(expected (\d+), got (\d+)\)", text):
        expected, got = numbers.groups()
        return f"backward returns {got} values, and forward has {expected} arguments", NUMBER_OF_GRADIENTS
    if "different than None at position" in text:
        return text, NUMBER_OF_GRADIENTS
    return "", ""


def _compiler_message(text: str) -> str:
    """What torch's compiler did not take: its texts have the reason first or last, and pages of advice between."""
    report, _, user_code = text.partition("from user code:")
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    reason = lines[0].partition("torch._check*(). ")[2] or lines[0] if lines else ""
    for start in ("Developer debug context: raised exception ", "Explanation: "):  # the first says more
        if details := [line.removeprefix(start) for line in lines if line.startswith(start)]:
            reason = f"{reason}: {details[0]}"
            break
    if reason.endswith("raised:") and len(lines) > 1:  # a compiler behind dynamo
        reason = lines[1]
    inner = re.search(r"\bgot (\w+)\((['\"])(.*?)\2\)(?= Hint:|$)", " ".join(lines))
    if inner is not None:  # the arguments of the call, page after page, come before it
        reason = f"{inner[1]}: {inner[3]}"
    stopped = re.findall(r'File "([^"]+)", line (\d+)', user_code)
    own = [place for place in stopped if not place[0].startswith(LIBRARIES)] or stopped
    where = f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
    return f"torch.compile: {reason}{where}" if reason else ""
