"""What is said where Java or Terrier cannot be started: in plain words, each time."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyterrier as pt
import pytest

from pyterrier_rankdistillm import JavaError
from pyterrier_rankdistillm.runs.java import start_java


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PyTerrier's folder with jars, and a Java somewhere."""
    (tmp_path / "terrier-assemblies-5.11-jar-with-dependencies.jar").touch()
    (tmp_path / "terrier-python-helper-0.0.8.jar").touch()
    java = tmp_path / "java"
    java.touch()
    java.chmod(0o755)
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return tmp_path


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception, *, started: bool = False) -> list[str]:
    options: list[str] = []
    state = SimpleNamespace(started=False)

    def init() -> None:
        warnings.warn("Attempted to download, but was offline", stacklevel=2)
        state.started = started
        raise error

    monkeypatch.setattr(pt.java, "started", lambda: state.started)
    monkeypatch.setattr(pt.java, "add_option", options.append)
    monkeypatch.setattr(pt.java, "configure", {"options": options})
    monkeypatch.setattr(pt.java, "init", init)
    return options


def told(what: str) -> None:
    for _ in range(2):
        with pytest.raises(JavaError, match=what):
            start_java("reproduce")


def test_no_jars(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = refusing(monkeypatch, OSError("urlopen error"))
    (home / "terrier-python-helper-0.0.8.jar").unlink()
    told(r"^reproduce: Terrier's jars are neither in .*: terrier-python-helper\. .*PYTERRIER_HOME names \(OSError: url")
    assert options == ["-Xrs"]  # once, so that Ctrl-C stays Python's


def test_no_java(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, Exception("Unable to find javac"))
    (home / "java").unlink()
    told(r"^reproduce: there is no Java\. Install Java 11 or newer, or set JAVA_HOME")


def test_a_wrong_java_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, RuntimeError("Unable to find libjvm.so"))
    monkeypatch.setenv("JAVA_HOME", str(home / "nowhere"))
    told(r"^reproduce: there is no Java in JAVA_HOME=.*nowhere\. Set it")


@pytest.mark.usefixtures("home")
def test_an_old_java(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, RuntimeError("Pyterrier requires Java 11 or newer"), started=True)
    system: Any = SimpleNamespace(getProperty=lambda _: "1.8.0_392")
    monkeypatch.setattr(pt.java, "J", SimpleNamespace(System=system))
    told(r"^reproduce: .*Java 11 or newer.*Install a newer one, set JAVA_HOME to it, and start Python again")


@pytest.mark.usefixtures("home")
def test_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, RuntimeError("JVM exception occurred"))
    told(r"^reproduce: Java 11 or newer is needed, and this one did not start \(RuntimeError: JVM exception")
