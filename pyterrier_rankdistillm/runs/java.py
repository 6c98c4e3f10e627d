"""Starting Java with Terrier for PyTerrier, where it is this package that needs it first."""

from __future__ import annotations

import os
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import pyterrier as pt

from ..errors import JavaError

OLDEST = 11
"""The oldest Java that PyTerrier runs on."""
_JARS = {"terrier-assemblies": "terrier-assemblies-*-jar-with-dependencies.jar",
         "terrier-python-helper": "terrier-python-helper-*.jar"}  # fmt: skip


def start_java(who: str) -> None:
    """Starts Java, unless it runs already.

    Args:
        who: The function that the user called.

    Raises:
        JavaError: It cannot be started, or is too old; the message says what is missing, and how to get it.
        ImportError: pyjnius is not installed.
    """
    if find_spec("jnius_config") is None:
        raise ImportError(f"{who} needs Java, and pyjnius to talk to it: pip install 'pyterrier[java]'.")
    if not pt.java.started():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it has no network, and takes the jars that are here
                if "-Xrs" not in pt.java.configure["options"]:
                    pt.java.add_option("-Xrs")  # Java would end the process on Ctrl-C, without a KeyboardInterrupt
                pt.java.init()
        except Exception as error:  # of five kinds, among them Exception itself
            raise JavaError(f"{who}: {_cause()} ({type(error).__name__}: {_shown(error)}).") from error
    version = java_version()
    if version < OLDEST:  # PyTerrier says so when it starts Java, but the second time it takes it as it is
        raise JavaError(f"{who}: Terrier needs Java {OLDEST} or newer, and this is Java {version}. {_OTHER_JAVA}")


def _shown(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


_OTHER_JAVA = "Install a newer one, set JAVA_HOME to it, and start Python again."


def java_version() -> int:
    """The first number of the version of the Java that runs: 8, 11, 17, ..."""
    stated = str(pt.java.J.System.getProperty("java.version")).removeprefix("1.")
    return int("".join(ch if ch.isdecimal() else " " for ch in stated).split()[0])


def _cause() -> str:
    """Why Java does not start, by what is there."""
    if pt.java.started():
        return f"Java started, but Terrier did not: it needs Java {OLDEST} or newer. {_OTHER_JAVA}"
    home = Path(pt.io.pyterrier_home())
    missing = [name for name, pattern in _JARS.items() if not any(home.glob(pattern))]
    if missing:
        return (
            f"Terrier's jars are neither in {home} nor could they be fetched: {' and '.join(missing)}. PyTerrier "
            f"fetches them from Maven once, with a network; or put them there, or into the folder that PYTERRIER_HOME "
            f"names"
        )
    java_home = os.environ.get("JAVA_HOME")
    if java_home:
        return f"there is no Java in JAVA_HOME={java_home}. Set it to a Java {OLDEST} or newer, or to nothing"
    if shutil.which("java") is None:
        return f"there is no Java. Install Java {OLDEST} or newer, or set JAVA_HOME to where it is"
    return f"Java {OLDEST} or newer is needed, and this one did not start"
