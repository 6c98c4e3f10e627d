from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import pyterrier_rankdistillm
import pyterrier_rankdistillm.errors

PACKAGE = Path(pyterrier_rankdistillm.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def imported(file: Path) -> set[str]:
    """The modules that a source file imports, as absolute names."""
    package = [PACKAGE.name, *file.relative_to(PACKAGE).parent.parts]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return names


def test_public_names() -> None:
    assert set(pyterrier_rankdistillm.__all__) >= {
        "Checkpoint",
        "CheckpointError",
        "Distillation",
        "FineTuning",
        "MonoElectra",
        "MonoElectraReRanker",
        "Reproduction",
        "TruncationWarning",
        "reproduce",
        "rerank_dataset",
    }
    assert pyterrier_rankdistillm.__all__ == sorted(pyterrier_rankdistillm.__all__)


@pytest.mark.parametrize("name", pyterrier_rankdistillm.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    assert name in dir(pyterrier_rankdistillm)
    thing = getattr(pyterrier_rankdistillm, name)
    assert (thing.__doc__ or "").strip()
    namespace: dict[str, object] = {}
    exec(f"from pyterrier_rankdistillm import {name}", namespace)
    assert namespace[name] is thing


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'DuoElectra'"):
        _ = pyterrier_rankdistillm.DuoElectra
    assert not hasattr(pyterrier_rankdistillm, "__wrapped__")


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "pyterrier", "pandas", "numpy", "tokenizers", "safetensors", "huggingface_hub"]
    heavy += ["ir_datasets", "ir_measures", "ray"]
    code = f"import sys, pyterrier_rankdistillm; print([name for name in {heavy} if name in sys.modules])"
    assert run(code).strip() == "[]"


def test_ray_is_imported_when_it_is_used() -> None:
    code = "import sys; from pyterrier_rankdistillm import rerank_dataset; print('ray' in sys.modules)"
    assert run(code).strip() == "False"


def test_importing_says_nothing_and_sets_up_no_logging() -> None:
    code = (
        "import logging; from pyterrier_rankdistillm import *; "
        "assert logging.root.handlers == [], logging.root.handlers; "
        "assert not [n for n in logging.root.manager.loggerDict if n.startswith('pyterrier_rankdistillm')]"
    )
    assert run(code) == ""


def test_first_scores_do_not_wait_for_torchs_compiler() -> None:
    code = (
        "import sys; from pyterrier_rankdistillm import MonoElectra; "
        "MonoElectra('rankdistillm:demo', device='cpu').rank('a query', ['a text', 'another']); "
        "print([name for name in ('torch._dynamo', 'transformers') if name in sys.modules])"
    )
    assert run(code).splitlines()[0] == "[]"


def test_scoring_needs_neither_data_frames_nor_pyterrier() -> None:
    code = (
        "import sys, pyterrier_rankdistillm.scoring.scorer; "
        "print([name for name in ('pandas', 'pyterrier', 'transformers') if name in sys.modules])"
    )
    assert run(code).strip() == "[]"


@pytest.mark.parametrize(
    "file", [file for file in SOURCES if file.parent.name == "scoring"], ids=lambda file: file.name
)
def test_scoring_imports_nothing_of_ours_but_itself(file: Path) -> None:
    names = imported(file)
    names -= {f"{PACKAGE.name}.{floor}" for floor in GROUND}
    # One file stands between transformers' own modules and the interface of ours; it is loaded when one is opened.
    barred = {"pandas", "pyterrier", "ir_datasets"} | ({"transformers"} if file.name != "automodel.py" else set())
    assert not {name for name in names if name.split(".")[0] in barred}
    ours = {name for name in names if name.split(".")[0] == PACKAGE.name}
    assert {name for name in ours if not name.startswith(f"{PACKAGE.name}.scoring")} == set()


GROUND = ("checks", "errors", "extras", "identity", "locks", "notebook", "progress", "query_language", "scratch")
"""Files that anything may import, and that import nothing of ours but one another."""

ROOMS = {
    **dict.fromkeys(GROUND, ()),
    "scoring": (),
    "reranker": ("scoring",),
    "set_encoder": ("reranker", "scoring"),
    "runs": ("reranker", "scoring", "set_encoder"),
    "demo": ("reranker", "runs", "scoring"),
    "datasets": ("demo", "runs"),
    "artifacts": ("runs",),
    "viewer": ("runs",),
    "training": ("datasets", "reranker", "runs", "scoring", "set_encoder"),
    "reproduction": ("datasets", "reranker", "runs", "scoring"),
    "scale": ("reranker", "runs", "scoring", "set_encoder"),
    "cli": ("datasets", "demo", "reranker", "runs", "scale", "scoring", "set_encoder", "reproduction", "training"),
}
"""What a room (a folder, or a file of its own) may import of ours, beside itself."""


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_arrows_point_one_way(file: Path) -> None:
    room = room_of(file.relative_to(PACKAGE).parts)
    if room == "__init__":  # the public names, resolved lazily
        return
    ours = {tuple(name.split(".")[1:]) for name in imported(file) if name.startswith(f"{PACKAGE.name}.")}
    rooms = {room_of(parts) for parts in ours if parts[0] in ROOMS}
    assert rooms - {room} <= {*ROOMS[room], *GROUND}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_private_modules_are_not_imported_from_another_room(file: Path) -> None:
    room = room_of(file.relative_to(PACKAGE).parts)
    ours = [name.split(".")[1:] for name in imported(file) if name.startswith(f"{PACKAGE.name}.")]
    private = [".".join(parts) for parts in ours if any(part[0] == "_" != part[1] for part in parts)]
    assert [name for name in private if name.split(".")[0] != room] == []


def test_no_two_files_or_public_classes_have_one_name() -> None:
    """``__init__.py`` aside; the command line and the package's own modules are found by their names."""
    files = [file.name for file in SOURCES if file.name != "__init__.py"]
    assert sorted(name for name in set(files) if files.count(name) > 1) == []
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in SOURCES]
    classes = [node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert {name for name in classes if classes.count(name) > 1} == set()


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_user_input_is_not_checked_by_assert(file: Path) -> None:
    """``python -O`` removes them. What is asserted is what the type checker cannot see: that something is not None."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tests = [ast.unparse(node.test) for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert [test for test in tests if not test.endswith("is not None")] == []


def test_types_are_marked_as_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_the_weights_have_a_licence_of_their_own() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0 AND LicenseRef-MS-MARCO-research-use"
    assert project["license-files"] == ["LICENSE", f"{PACKAGE.name}/demo/checkpoint/LICENSE"]
    assert (PACKAGE / "demo" / "checkpoint" / "LICENSE").is_file()
    card = (PACKAGE / "demo" / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: other\n")
    assert project["urls"]
    assert "Development Status :: 4 - Beta" in project["classifiers"]


def test_version_is_the_metadata_s() -> None:
    assert pyterrier_rankdistillm.__version__ == version("pyterrier-rankdistillm")
    assert pyterrier_rankdistillm.__version__.count(".") == 2


OURS = {name for name, kind in vars(pyterrier_rankdistillm.errors).items() if isinstance(kind, type)}


def messages_passed_on(file: Path) -> list[int]:
    """The lines where an error of the package is caught and its message becomes part of another one's."""
    lines = []
    for handler in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None or handler.type is None:
            continue
        caught = {node.attr if isinstance(node, ast.Attribute) else node.id for node in ast.walk(handler.type)
                  if isinstance(node, ast.Name | ast.Attribute)}  # fmt: skip
        if not caught & OURS:
            continue
        for node in ast.walk(handler):
            if isinstance(node, ast.Attribute) and node.attr in ("removeprefix", "partition", "split"):
                lines.append(node.lineno)  # a message is cut
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                told = [n for argument in node.exc.args for n in ast.walk(argument)]
                if any(isinstance(n, ast.Name) and n.id == handler.name for n in told):
                    lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_message_has_one_author(file: Path) -> None:
    """Nobody cuts the message of another function, or puts a name before it: low rooms are told who asks."""
    assert messages_passed_on(file) == []
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"in str\((error|caught)\)(?![.])", text)  # no word of a message is program logic
