"""Compiles the CPU kernels when the package is built; where there is no C++ compiler, it is built without them."""

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_BUILD = Path("src/dynaconv/kernels/cpu/build.py")


class KernelBuildHook(BuildHookInterface):
    """Used by hatchling, see pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this platform and for every Python."""
        if self.target_name != "wheel":
            return
        # The package itself cannot be imported: torch is not in the environment that builds it.
        spec = importlib.util.spec_from_file_location("build", Path(self.root, _BUILD))
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"{_BUILD} is missing from the sources")
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        try:
            build.build()
        except (FileNotFoundError, RuntimeError) as error:
            self.app.display_warning(f"dynaconv is built without its CPU kernels, which is slower: {error}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data |= {"pure_python": False, "tag": f"py3-none-{platform}"}
        build_data["artifacts"].append(f"{_BUILD.parent.as_posix()}/libraries/*.so")
