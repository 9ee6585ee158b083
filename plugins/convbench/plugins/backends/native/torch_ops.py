"""The ops of `native`, each there twice (`convbench.registry.authoring.torch_library`)."""

from __future__ import annotations

from convbench.registry.authoring.torch_library import Library

LIBRARY = Library("convbench_native", "cpu")
OPS, EAGER, KERNELS = LIBRARY.ops, LIBRARY.eager, LIBRARY.kernels
register = LIBRARY.add
