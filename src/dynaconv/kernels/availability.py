"""Whether the CPU kernels run in this process. Where they do not, the operators compute their definition instead."""

import functools
import importlib.util
import logging
import os
from importlib import import_module

_log = logging.getLogger("dynaconv")
_told = _forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not where there are no forks, on Windows
    os.register_at_fork(after_in_child=_after_fork)


def cpu_kernels_run() -> bool:
    """Whether the kernels load, and the process is not a fork: threads of kernels do not survive one."""
    return not _forked and _cpu_kernels_load()


@functools.cache
def _cpu_kernels_load() -> bool:
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        for family in ("static", "dynamic", "lowrank"):
            import_module(f"{__package__}.cpu.{family}")
    except Exception as error:  # whatever a broken installation raises
        tell("The CPU kernels do not load, plain PyTorch takes their place, which is slower", error)
        return False
    return True


def tell(what: str, error: Exception) -> None:
    """Log what an error has led to, the first time in a process."""
    global _told
    if not _told:
        _told = True
        _log.warning("%s: %s: %s", what, type(error).__name__, " ".join(str(error).split()))
