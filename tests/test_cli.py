"""The command line, on the demo collection with a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pandas as pd
import pyterrier as pt
import pytest
from tiny import Tiny

from pyterrier_rankdistillm import MonoElectra, __version__, cli, runs
from pyterrier_rankdistillm.demo import show
from pyterrier_rankdistillm.scoring.scorer import Precision

# The tiny checkpoint reads 6 and 16 tokens.
pytestmark = pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.TruncationWarning")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    run = pt.get_dataset("rankdistillm:demo").get_results()
    file = tmp_path / "bm25.run.gz"
    runs.write(run[run["qid"].isin(["q01", "q02"])][["qid", "docno", "score", "rank"]], file)
    return file


def test_rerank_writes_what_the_pipeline_gives(
    run_file: Path, tmp_path: Path, model: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "reranked.run"
    command = ["rerank", str(run_file), str(output), "--dataset", "rankdistillm:demo", "--model", str(model.folder)]
    assert cli.main([*command, "--depth", "5"]) == 0
    assert "10 rows for 2 queries" in capsys.readouterr().out

    first_stage = runs.read(run_file, dataset="rankdistillm:demo")
    expected = MonoElectra(model.folder)(first_stage[first_stage["rank"] < 5])
    pd.testing.assert_frame_equal(
        runs.read(output)[["qid", "docno", "rank"]], expected[["qid", "docno", "rank"]], check_dtype=False
    )
    assert runs.read(output)["score"].tolist() == pytest.approx(expected["score"].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.run", "out.run", "--dataset", "rankdistillm:demo"], "missing.run"),
        (["{run}", "out.doc", "--dataset", "rankdistillm:demo"], "out.doc"),
        (["{run}", "out.run"], "--topics or --dataset must be given"),
        (["{run}", "out.run", "--dataset", "rankdistillm:demo", "--depth", "0"], "--depth must be at least 1, got 0"),
        (["{run}", "out.run", "--dataset", "rankdistillm:demo", "--model", "./nothing"], "nothing is not a folder"),
    ],
)
def test_rerank_says_what_is_wrong_and_writes_nothing(
    run_file: Path,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert cli.main(["rerank", *(argument.format(run=run_file) for argument in arguments)]) == 1
    assert complaint in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("pisa", [True, False])
def test_demo_prints_table_time_and_a_ranking(
    model: Tiny, pisa: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if pisa:
        pytest.importorskip("pyterrier_pisa")
        monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path))
    else:
        monkeypatch.setattr(show, "is_installed", lambda _: False)
    assert cli.main(["demo", "--model", str(model.folder), "--qid", "q03"]) == 0
    printed = capsys.readouterr().out
    assert ("a live PISA index" if pisa else "the run that ships with it") in printed
    assert "BM25 >> MonoElectra" in printed
    assert "what is eating holes in my lettuce overnight" in printed
    assert " s for both on cpu" in printed


def test_demo_refuses_an_unknown_query(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--qid", "q99"]) == 1
    assert "qid must be one of q01 to q32, got 'q99'" in capsys.readouterr().err


def test_dtypes_of_the_command_line_are_those_of_the_scorer() -> None:
    assert get_args(Precision) == cli.DTYPES


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == __version__
