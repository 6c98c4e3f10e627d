"""``rankdistillm finetune`` and ``distill``, on the demo collection with a tiny student."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest
import tiny
import toy

from pyterrier_rankdistillm import Checkpoint, Distillation, FineTuning, MonoElectra, cli, runs
from pyterrier_rankdistillm.training.settings import Settings, descriptions

# The tiny student reads 6 and 16 tokens.
pytestmark = pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.TruncationWarning")

DEMO = ["--dataset", "rankdistillm:demo"]
QUICK = [*DEMO, "--query-length", "6", "--doc-length", "16", "--no-verbose", "--device", "cpu", "--steps", "2",
         "--batch-size", "2", "--depth", "6"]  # fmt: skip
BOTH = pytest.mark.parametrize("command", ["finetune", "distill"])


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """BM25's run of some queries that have relevant documents among the first six."""
    run = pt.get_dataset("rankdistillm:demo").get_results()
    file = tmp_path / "bm25.run.gz"
    runs.write(run.loc[run["qid"] < "q07", ["qid", "docno", "score", "rank"]], file)
    return file


def one_line(capsys: pytest.CaptureFixture[str], command: str) -> str:
    err = capsys.readouterr().err
    assert err.startswith(f"rankdistillm {command}: ")
    assert err.count("\n") == 1
    return err


@BOTH
def test_a_run_file_in_a_checkpoint_out(
    command: str, model: tiny.Tiny, run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "student"
    options = ["--sample-size", "4"] if command == "finetune" else ["--loss", "{name: adr_mse, discount: none}"]
    assert cli.main([command, str(model.folder), str(run_file), str(output), *QUICK, *options]) == 0
    kind: Any = {"finetune": FineTuning, "distill": Distillation}[command]
    changes: Any = {"finetune": {"sample_size": 4}, "distill": {"loss": {"name": "adr_mse", "discount": "none"}}}[
        command
    ]
    assert f"{output}: a checkpoint, trained by {kind.__name__}(" in capsys.readouterr().out
    one = kind(model.folder, **toy.QUICK | {"learning_rate": 1e-5, "batch_size": 2, "steps": 2, "depth": 6} | changes)
    demo = pt.get_dataset("rankdistillm:demo")
    frame = runs.read(run_file, dataset="rankdistillm:demo")
    one.fit(frame, demo.get_qrels(), text=demo)
    saved = MonoElectra(output, device="cpu")
    for name, weight in toy.weights(one.reranker).items():
        assert weight.allclose(toy.weights(saved)[name], atol=1e-6), name
    pd.testing.assert_frame_equal(saved(frame), one(frame), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Distillation. no validation was better")
def test_a_validation_run(model: tiny.Tiny, run_file: Path, tmp_path: Path) -> None:
    run = pt.get_dataset("rankdistillm:demo").get_results()
    runs.write(run.loc[run["qid"] > "q28", ["qid", "docno", "score", "rank"]], tmp_path / "valid.run")
    command = ["distill", str(model.folder), str(run_file), str(tmp_path / "student"), *QUICK]
    command += ["--folder", str(tmp_path / "kept"), "--measure", "RR@10", "--valid-every", "1"]
    assert cli.main([*command, "--valid-run", str(tmp_path / "valid.run"), "--valid-dataset", "rankdistillm:demo"]) == 0
    log = pd.read_csv(tmp_path / "kept" / "log.csv")
    assert log["RR@10"].notna().tolist() == [True] * 3


def test_flags_overrule_the_yaml_file_which_overrules_the_recipe(
    model: tiny.Tiny, run_file: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("loss: list_mle\nlearning_rate: 3e-4\nseed: 5\nepochs: 2\n")
    command = ["distill", str(model.folder), str(run_file), str(tmp_path / "student"), *QUICK, "--seed", "6"]
    command += ["--recipe", str(recipe), "--folder", str(tmp_path / "kept"), "--weight-decay", "1e-3", "--resume"]
    assert cli.main([*command, "--negative-ranks", "[0, 5]", "--no-drop-near-duplicates"]) == 0
    settings = json.loads((tmp_path / "kept" / "training.json").read_text())["settings"]
    expected = {"loss": "list_mle", "learning_rate": 3e-4, "seed": 6, "weight_decay": 1e-3, "steps": 2, "epochs": None}
    expected |= {"negative_ranks": [0, 5], "drop_near_duplicates": False, "batch_size": 2, "max_grad_norm": None}
    assert {name: settings[name] for name in expected} == expected


@BOTH
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{model}", "missing.run", "out", *QUICK], "missing.run"),
        (["{model}", "{run}", "out"], "--dataset must be given"),
        (
            ["{model}", "{run}", "out", *QUICK, "--steps", "0"],
            "steps must be None or a whole number, at least 1, got 0.",
        ),
        (["{model}", "{run}", "out", *QUICK, "--steps", "1", "--epochs", "1"], "got steps=1 and epochs=1."),
        (["{model}", "{run}", "out", *QUICK, "--loss", "nothing"], "name of a loss must be one of lce, ranknet"),
        (["{model}", "{run}", "out", *QUICK, "--recipe", "other"], "recipe must be one of rank-distillm, or a YAML"),
        (["{model}", "{run}", "{run}", *QUICK], "exists. Choose another folder, or remove it."),
        (["{model}", "{run}", "out", *QUICK, "--valid-run", "{run}"], "--valid-run and --valid-dataset go together"),
        (["./nothing", "{run}", "out", *QUICK], "nothing is not a folder"),
        (["{model}", "{run}", "out", *QUICK, "--learning-rate", "1e30"], "The training loss is nan at step"),
        (["{model}", "rankdistillm:unknown", "out", *QUICK], "unknown"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    command: str,
    model: tiny.Tiny,
    run_file: Path,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"model": model.folder, "run": run_file}
    size = ["--sample-size", "4"] if command == "finetune" else []
    assert cli.main([command, *(argument.format(**places) for argument in arguments), *size]) == 1
    assert complaint in one_line(capsys, command)
    left = {name for name in toy.names(tmp_path) if not name.endswith(".rankings")}  # the run's mapped form may be made
    assert left == {run_file.name}


def test_a_value_that_is_no_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["distill", "a", "b", "c", "--loss", "[ranknet"])
    assert "argument --loss: invalid" in capsys.readouterr().err


@BOTH
def test_help_lists_every_setting(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    told = descriptions()
    for field in dataclasses.fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in printed
        assert " ".join(told[field.name].split()[:6]) in printed


def test_only_the_main_process_writes(
    model: tiny.Tiny, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote: list[Callable[..., Any]] = []
    monkeypatch.setattr(MonoElectra, "save", lambda *_: wrote.append(_))
    for rank, writes in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["distill", str(model.folder), str(run_file), str(tmp_path / "student"), *QUICK]) == 0
        assert len(wrote) == writes


def test_several_runs(model: tiny.Tiny, run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.read(run_file)
    other = tmp_path / "other.run"
    runs.write(run.assign(score=-run["score"], rank=run.groupby("qid")["rank"].transform("max") - run["rank"]), other)
    command = ["distill", str(model.folder), str(run_file), str(tmp_path / "student"), "--run"]
    assert cli.main([*command, str(tmp_path / "nowhere.run"), *QUICK]) == 1
    assert "--run must be a frame, a run file" in one_line(capsys, "distill")
    assert cli.main([*command, str(other), *QUICK]) == 0
    made = Checkpoint.open(tmp_path / "student").record
    assert made is not None
    assert made["data"]["rankings"] == "bm25.run.gz, other.run"
    assert made["training"]["lists per epoch"] == 2 * made["training"]["queries"]
