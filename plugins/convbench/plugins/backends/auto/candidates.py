"""The candidates: registered backends that can run here and are as exact and as repeatable as torch.

A backend does not take part if it declares larger errors than a direct sum, as `fft` and `winograd` do, or if its
results differ from run to run.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from convbench.plugins.backends.auto import DTYPES
from convbench.registry import Backend, Registry
from convbench.registry.authoring.conv_parts import Parts, parts_of
from convbench.registry.known_faults import KnownFault, in_wider_dtype
from convbench.registry.ops.contract import OPS
from convbench.registry.ops.sequential import by_position, in_parts

OURSELVES = "auto"
BASELINE = "torch"
APART = "apart"  # what a fused op stands for, layer by layer
CODE = frozenset(
    {".c", ".cc", ".cpp", ".cu", ".cuh", ".dll", ".dylib", ".h", ".hpp", ".py", ".pyd", ".pyx", ".rs", ".so"}
)


@dataclass(frozen=True)
class Candidate:
    """A backend under its registered name, and the version of its code."""

    name: str
    backend: Backend = field(compare=False, repr=False)
    release: str  # of its distribution
    sources: str  # a digest

    @property
    def fingerprint(self) -> str:
        """Changes whenever its code does."""
        return f"{self.release}, sources {self.sources}"

    def op(self, name: str) -> Callable[..., Any]:
        """Its implementation of an op that it offers, which takes all arguments by position.

        Of fused ops the baseline offers their definition.
        """
        op, ops = OPS[name], self.backend.ops
        found = ops.get(name, op.reference) if self.name == BASELINE and op.base is not None else ops[name]
        return by_position(found) if op.chain else found

    def parts(self, name: str) -> Parts | None:
        """The parts of that implementation, where it has any."""
        return parts_of(self.op(name))

    def avoiding(self, fault: KnownFault) -> Candidate:
        """The same backend, torch; it computes the ops of a known fault in another dtype."""
        ops = {
            name: in_wider_dtype(op, fault) for name, op in OPS.items() if (op.base or op).name in fault.ops
        }
        whole = {**self.backend.ops, **ops}
        return replace(self, backend=replace(self.backend, load=lambda: whole))

    def claims(self, op: str, device: str, dtype: str) -> bool:
        """Whether it declares such calls, with the errors of a direct sum."""
        return (
            device in self.backend.devices
            and dtype in self.backend.dtypes_on(device)
            and op in self.backend.ops
            and op not in self.backend.accuracy
        )


def layer_by_layer(routes: Mapping[str, Callable[..., Any]]) -> Candidate:
    """Serves fused ops by the ops that they stand for, which `routes` has by name."""
    ops = {name: in_parts(op, routes) for name, op in OPS.items() if op.base is not None}
    backend = Backend(APART, "layer by layer", lambda: ops, ("cpu", "cuda"), DTYPES)
    return Candidate(APART, backend, "", "")


def candidates_of(registry: Registry) -> dict[str, Candidate]:
    """The candidates of a registry by name, the baseline first; not those that fail to load or cannot run here."""
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
    except Exception:  # noqa: BLE001 - a plugin's code may raise anything
        return False


def digest_of(module: str) -> str:
    """A digest of the files of a loaded module's outermost package, or of its own file if it is in no package.

    A version number does not change while somebody works on a plugin.
    """
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        loaded = sys.modules.get(".".join(parts[:length]))
        file = getattr(loaded, "__file__", None)  # a namespace package has none
        if file is not None:
            path = Path(file)
            return _digest(path.parent if path.name == "__init__.py" else path)
    return "unknown"


@cache
def _digest(root: Path) -> str:
    if root.is_file():
        return hashlib.sha256(root.read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in CODE and path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]
