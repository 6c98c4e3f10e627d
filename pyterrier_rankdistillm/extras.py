"""Optional packages: which extra of this package brings each."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

EXTRAS = {
    "accelerate": ("accelerate", "train"),
    "yaml": ("PyYAML", "train"),
    "matplotlib": ("matplotlib", "report"),
    "jinja2": ("jinja2", "report"),
    "pyarrow": ("pyarrow", "parquet"),
    "ray": ("Ray Data", "scale"),
    "pyterrier_caching": ("pyterrier-caching", "cache"),
    "pyterrier_pisa": ("pyterrier-pisa", "demo"),
}
"""The name and the extra of an optional package, by its module; others are installed under the module's name."""


def require(module: str, what: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: The module's name, such as ``"pyarrow.parquet"``.
        what: What needs it, as the subject of the message: ``"runs.write to Parquet"``.

    Raises:
        ImportError: It is not installed; the message says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise missing(module, what) from error


def is_installed(module: str) -> bool:
    """Whether there is a module, without importing it."""
    return find_spec(module) is not None


def check_installed(module: str, what: str) -> None:
    """Like ``require``, without the import: for modules that are slow to import and needed only later."""
    if not is_installed(module):
        raise missing(module, what)


def missing(module: str, what: str) -> ImportError:
    """The error for a module that is not installed."""
    package = module.partition(".")[0]
    name, extra = EXTRAS.get(package, (package, None))
    command = f"'pyterrier-rankdistillm[{extra}]'" if extra else name
    return ImportError(f"{what} needs {name}: pip install {command}.")
