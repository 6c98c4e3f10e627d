"""Without the optional packages: all public names are there, and what needs one says its extra before any work.

``.ci/run`` runs this where none of them is installed, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest
import tiny

from pyterrier_rankdistillm import (
    Distillation,
    FineTuning,
    MonoElectra,
    cli,
    extras,
    reproduce,
    rerank_dataset,
    runs,
    scale,
)

PACKAGES = (*extras.EXTRAS, "tensorboard", "wandb")
DEMO = "rankdistillm:demo"

NAMES = """
import importlib, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
import pyterrier_rankdistillm as package
rooms = [package, *(getattr(package, name) for name in ("runs", "scale", "training", "reproduction"))]
print(sum(getattr(room, name) is not None for room in rooms for name in room.__all__))
"""


def test_every_public_name_is_there() -> None:
    # PyTerrier itself needs jinja2, transformers PyYAML.
    blocked = ",".join(sorted({*PACKAGES} - {"jinja2", "yaml"}))
    done = subprocess.run([sys.executable, "-c", NAMES, blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Makes a package one that is not installed, as far as ours looks; others (pandas) go on using it."""
    monkeypatch.chdir(tmp_path)
    import_module, find_spec = extras.import_module, extras.find_spec

    def block(package: str) -> None:
        def imported(name: str) -> Any:
            if name.partition(".")[0] == package:
                raise ImportError(name)
            return import_module(name)

        monkeypatch.setattr(extras, "import_module", imported)
        monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else find_spec(name))

    return block


class Untouched(pt.Transformer):
    """A teacher, first stage or loader that nobody may ask."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        raise AssertionError(f"work began on {len(inp)} rows")


def settings(**more: Any) -> dict[str, Any]:
    return {"steps": 1, "batch_size": 1, "depth": 5, "verbose": False, **more}


def recipe() -> str:
    Path("recipe.yaml").write_text("steps: 1\n", encoding="utf-8")
    return "recipe.yaml"


TOPICS = pd.DataFrame({"qid": ["q1"], "query": ["why does bread rise"]})
QRELS = pd.DataFrame({"qid": ["q1"], "docno": ["d1"], "label": [1]})

CALLS: list[tuple[str, str, Callable[[], Any]]] = [
    ("accelerate", "train", lambda: FineTuning(DEMO, sample_size=2, **settings())),
    ("accelerate", "train", lambda: Distillation(DEMO, teacher=Untouched(), **settings())),
    ("tensorboard", "", lambda: Distillation(DEMO, **settings(folder="kept", report_to="tensorboard"))),
    ("wandb", "", lambda: FineTuning(DEMO, **settings(sample_size=2, report_to=["wandb"]))),
    ("pyterrier_pisa", "demo", lambda: pt.get_dataset(DEMO).get_index()),
    ("yaml", "train", lambda: Distillation(DEMO, recipe=recipe())),
    ("ray", "scale", lambda: rerank_dataset("a.run", "no/such-model", "b.run", text=Untouched())),
    ("ray", "scale", lambda: scale.estimate_rerank("a.run", "no/such-model", "b.run", text=Untouched())),
    ("pyarrow", "parquet", lambda: runs.make_teacher_run(Untouched(), Untouched(), TOPICS, "a.parquet")),
    ("pyarrow", "parquet", lambda: runs.write(QRELS.assign(score=1.0), "a.parquet")),
    ("pyarrow", "parquet", lambda: runs.Rankings.from_file("rankdistillm:colbert")),
    ("pyarrow", "parquet", lambda: runs.ParquetText(recipe())),
    ("pyterrier_caching", "cache", lambda: runs.ScoreCache(MonoElectra("no/such-model"), "scores")),
    ("pyarrow", "parquet", lambda: reproduce("trec-dl-2019", {"a": Untouched()}, first_stage=Untouched(),
                                             topics=TOPICS, qrels=QRELS, folder="kept")),
]  # fmt: skip


@pytest.mark.parametrize(("package", "extra", "call"), CALLS, ids=[f"{one[0]}-{n}" for n, one in enumerate(CALLS)])
def test_a_function_names_its_extra_before_any_work(
    bare: Callable[[str], None], package: str, extra: str, call: Callable[[], Any]
) -> None:
    bare(package)
    with pytest.raises((ImportError, ValueError), match=named(package, extra)):
        call()
    assert {path.name for path in Path.cwd().iterdir()} <= {"recipe.yaml"}


def named(package: str, extra: str) -> str:
    return rf"needs .*pip install '?{f'pyterrier-rankdistillm.{extra}.' if extra else package}"


COMMANDS: list[tuple[str, str, list[str]]] = [
    ("accelerate", "train", ["finetune", DEMO, "no.run", "out", "--dataset", DEMO, "--steps", "1"]),
    ("accelerate", "train", ["distill", DEMO, "rankdistillm:rankzephyr", "out"]),
    ("pyarrow", "parquet", ["rerank", "{run}", "out.parquet", "--dataset", DEMO, "--model", "{model}"]),
    ("ray", "scale", ["rerank", "{run}", "out.run", "--dataset", DEMO, "--model", "{model}", "--engine", "ray"]),
    ("jinja2", "report", ["reproduce", DEMO, "--first-stage", "no.run", "--html", "out.html"]),
    ("pyarrow", "parquet", ["reproduce", DEMO, "--first-stage", "{run}", "--folder", "out"]),
]


@pytest.mark.parametrize(("package", "extra", "command"), COMMANDS, ids=[f"{one[0]}-{one[2][0]}" for one in COMMANDS])
def test_a_command_names_its_extra_before_any_work(
    bare: Callable[[str], None],
    package: str,
    extra: str,
    command: list[str],
    model: tiny.Tiny,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs.write(pt.get_dataset(DEMO).get_results(), "bm25.run")
    monkeypatch.setattr(MonoElectra, "transform", Untouched.transform)
    bare(package)
    assert cli.main([part.format(run="bm25.run", model=model.folder) for part in command]) == 1
    error = capsys.readouterr().err
    assert re.search(named(package, extra), error), error
    assert [path.name for path in Path.cwd().iterdir()] == ["bm25.run"]
