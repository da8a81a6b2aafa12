"""Whether the CPU kernels run on this machine. Where they do not, the operators compute their definition instead."""

import functools
import logging

_log = logging.getLogger("dynaconv")


@functools.cache
def cpu_kernels_run() -> bool:
    """Whether the kernels load; where they do not, the log says once why."""
    from .cpu.runtime import library

    try:
        library()
    except OSError as error:
        _log.warning("The CPU kernels do not load, plain PyTorch takes their place, which is slower: %s", error)
        return False
    return True
