"""The ops of `native`, each there twice (`convbench.registry.op_registration`)."""

from __future__ import annotations

from convbench.registry.op_registration import Library

LIBRARY = Library("convbench_native", "cpu")
OPS, EAGER, KERNELS = LIBRARY.ops, LIBRARY.eager, LIBRARY.kernels
register = LIBRARY.add
