"""Versions of dynaconv and of what it builds on, without importing any of it."""

import platform
from importlib import metadata

from . import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "triton")


def installed(package: str) -> str | None:
    """The version of a package; None: it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_versions() -> str:
    """A line for each of dynaconv, Python and the packages that decide what it computes."""
    packages = {name: installed(name) or "not installed" for name in _PACKAGES}
    versions = {"dynaconv": __version__, "python": platform.python_version(), **packages}
    return "\n".join(f"{name} {version}" for name, version in versions.items())
