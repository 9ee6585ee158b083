"""Which version of hooks, records and op calls a plugin was written for: `convbench_contract = 1` in its module.

The number rises when a plugin of the old contract would be misread under the new one; a hook, an op or a field
with a default that merely joins does not raise it. A module that declares nothing is of the current contract.
"""

from __future__ import annotations

from convbench.registry.errors import PluginError

CONTRACT = 1  # the one this convbench keeps
OLDEST = 1  # the oldest it still understands


def check_contract(plugin: object) -> None:
    """Refuse a plugin whole that was written for a contract this convbench does not keep.

    Raises:
        PluginError: a newer or a forgotten contract, or a declaration that is no whole number.
    """
    declared = getattr(plugin, "convbench_contract", CONTRACT)
    if not isinstance(declared, int) or isinstance(declared, bool) or declared < 1:
        raise PluginError(f"convbench_contract must be a whole number such as {CONTRACT}, not {declared!r}")
    if declared > CONTRACT:
        raise PluginError(
            f"it was written for contract {declared} of convbench, and this convbench keeps contract "
            f"{CONTRACT}; upgrade convbench"
        )
    if declared < OLDEST:
        raise PluginError(
            f"it was written for contract {declared} of convbench, which is understood no more; contracts "
            f"{OLDEST} to {CONTRACT} are: upgrade the plugin"
        )
