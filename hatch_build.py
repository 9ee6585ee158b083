"""The build hook: compile the kernels of the `native` backend into the package, where there is a compiler.

A wheel that carries the library says for which platform; without a compiler it is the pure one that it was, and
`native` says that it is unavailable. An editable installation has the library beside its sources.
"""

from __future__ import annotations

import importlib.util
import platform
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILDING = Path("plugins", "convbench", "plugins", "backends", "native", "build.py")


class NativeBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        building = _loaded(Path(self.root) / BUILDING)
        try:
            library = building.build()
        except building.CannotBuild as reason:
            self.app.display_warning(f"the native backend will be unavailable: {reason}")
            return
        build_data["artifacts"].append(library.relative_to(self.root).as_posix())  # git does not know it
        build_data["pure_python"] = False
        machine = sysconfig.get_platform().replace("universal2", platform.machine())
        # one library serves every Python
        build_data["tag"] = f"py3-none-{machine.replace('-', '_').replace('.', '_')}"


def _loaded(path: Path) -> ModuleType:
    """The module at that path, which is not installed yet."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
