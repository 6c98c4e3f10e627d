"""Whose code something is: the user's own, or a distribution's that is installed, or Python's."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

PYTHON = "Python"
"""The owner of the standard library."""

_OURS = __name__.partition(".")[0]
"""Known by its version, also where it is installed to be edited."""
_INSTALLED = ("site-packages", "dist-packages")


def owner_of(module: str | None, namespace: Mapping[str, object] | None = None) -> str | None:
    """The distributions that a module is of, ``PYTHON``, or None: the user's own.

    The user's own is all that does not lie in a folder of installed packages: scripts, notebooks, modules beside them,
    and packages that are installed to be edited.

    Args:
        module: Its name.
        namespace: The globals of what claims to be of it; of another namespace it is the user's own.
    """
    if module is None:
        return PYTHON if namespace is None else None  # method descriptors and their like
    loaded = sys.modules.get(module)
    if namespace is not None and (loaded is None or vars(loaded) is not namespace):
        file = namespace.get("__file__")
        if namespace.get("__name__") != module or not isinstance(file, str):
            return None
        return _owner(module.partition(".")[0], file)
    if loaded is None:
        return PYTHON if module.partition(".")[0] in sys.stdlib_module_names else None
    return _owner(module.partition(".")[0], getattr(loaded, "__file__", None))


@functools.lru_cache(maxsize=10_000)
def _owner(package: str, file: str | None) -> str | None:
    if package == "__main__":
        return None
    if package == _OURS:
        return _OURS.replace("_", "-")
    if file is None:
        return PYTHON if package in sys.stdlib_module_names or package in sys.builtin_module_names else None
    parts = Path(file).parts
    if any(part in parts for part in _INSTALLED):
        return ", ".join(sorted(set(_distributions().get(package, ())))) or None
    real = os.path.realpath(file)
    return PYTHON if any(real.startswith(folder) for folder in _standard_library()) else None


@functools.lru_cache(maxsize=1)
def _standard_library() -> tuple[str, ...]:
    return tuple({os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")})


@functools.lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@functools.lru_cache(maxsize=1000)
def version_of(distributions: str) -> str:
    """Their versions."""
    return ", ".join(map(_version, distributions.split(", ")))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # removed since
        return "?"
