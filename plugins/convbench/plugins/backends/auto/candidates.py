"""Who may win: backends that are registered, can run here, and are as exact as a direct sum.

A backend that declares errors of another kind, as `fft` and `winograd` do, does not take part, nor does one whose
answers differ from run to run: what `auto` answers is as exact and as repeatable as what torch answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from convbench.plugins.backends.auto.code_digest import digest_of
from convbench.registry import Backend, Registry
from convbench.registry.authoring.conv_parts import Parts, parts_of
from convbench.registry.known_faults import KnownFault, in_wider_dtype
from convbench.registry.ops.contract import OPS

OURSELVES = "auto"
BASELINE = "torch"


@dataclass(frozen=True)
class Candidate:
    """One backend that may win, under the name it is listed by, and what its answers depend on."""

    name: str
    backend: Backend = field(compare=False, repr=False)
    release: str  # of its distribution
    sources: str  # a digest

    @property
    def fingerprint(self) -> str:
        """What changes when its code does."""
        return f"{self.release}, sources {self.sources}"

    def op(self, name: str) -> Callable[..., Any]:
        """Its implementation of an op that it offers."""
        return self.backend.ops[name]

    def parts(self, name: str) -> Parts | None:
        """The parts of that implementation, where it has any."""
        return parts_of(self.op(name))

    def avoiding(self, fault: KnownFault) -> Candidate:
        """The baseline, computing in another dtype what torch is known to get wrong in that of the call."""
        ops = {name: in_wider_dtype(OPS[name], fault) for name in fault.ops if name in self.backend.ops}
        whole = {**self.backend.ops, **ops}
        return replace(self, backend=replace(self.backend, load=lambda: whole))

    def claims(self, op: str, device: str, dtype: str) -> bool:
        """Whether it says that it computes such calls, as exactly as a direct sum."""
        return (
            device in self.backend.devices
            and dtype in self.backend.dtypes_on(device)
            and op in self.backend.ops
            and op not in self.backend.accuracy
        )


def candidates_of(registry: Registry) -> dict[str, Candidate]:
    """Those of a registry, by name, the baseline first; what fails to load or cannot run here is none."""
    found = {}
    for name in sorted(registry.backends, key=lambda name: (name != BASELINE, name)):
        backend = registry.backend(name)
        if backend.name == OURSELVES or not backend.deterministic or not _runs_here(backend):
            continue
        plugin = registry.backends.plugin(name)
        release = f"{plugin.distribution} {plugin.version}"
        found[name] = Candidate(name, backend, release, digest_of(plugin.module.partition(":")[0]))
    return found


def _runs_here(backend: Backend) -> bool:
    try:
        return backend.unavailable() is None and bool(backend.ops)
    except Exception:  # noqa: BLE001 - a plugin's code: anything can come out of it
        return False
