"""A training that is kept answers only for what made it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import toy
from torch import Tensor

from pyterrier_rankdistillm import KeptWorkError
from pyterrier_rankdistillm.runs.kinds import rankings_digest
from pyterrier_rankdistillm.runs.rankings import Rankings
from pyterrier_rankdistillm.training import losses
from pyterrier_rankdistillm.training.losses import Loss


def test_every_ranking_counts() -> None:
    frame = pd.DataFrame(
        [(f"q{q}", f"d{d}", -float(d), d) for q in range(1000) for d in range(3)],
        columns=["qid", "docno", "score", "rank"],
    )
    digest = rankings_digest(Rankings.from_frame(frame))
    assert rankings_digest(Rankings.from_frame(frame.copy())) == digest
    changed = frame.copy()
    third = changed["qid"] == "q3"
    changed.loc[third, "docno"] = changed.loc[third, "docno"].to_numpy()[::-1]
    assert rankings_digest(Rankings.from_frame(changed)) != digest
    assert rankings_digest(Rankings.from_frame(frame.assign(score=frame["score"] * 2))) != digest


@pytest.mark.filterwarnings("ignore:.*no validation was better than that before:UserWarning")
def test_text_labels_loss_and_validation_count(
    model: tiny.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(factor: float) -> Any:
        def loss(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
            return factor * losses.ranknet(scores, targets, mask)

        return loss

    monkeypatch.setitem(losses.LOSSES, "mine", Loss(mine(1.0), "order"))
    options: dict[str, Any] = {"steps": 2, "folder": tmp_path / "kept", "loss": "mine", "resume": True}

    def fit(train: pd.DataFrame = toy.TRAIN, valid: pd.DataFrame = toy.VALID, **more: Any) -> Any:
        one = toy.distillation(model.folder, **options)
        one.fit(train, None, valid, toy.QRELS, **more)
        return one

    first = fit()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").rglob("*.safetensors")}
    again = fit()
    assert toy.same(toy.weights(first.reranker), toy.weights(again.reranker))

    one = toy.TRAIN["docno"] == toy.TRAIN["docno"].iloc[0]
    other_text = toy.TRAIN.assign(text=toy.TRAIN["text"].where(~one, "rain"))
    with pytest.raises(KeptWorkError, match=r"holds another training: texts.*reuse=\['texts'\]"):
        fit(other_text)
    with pytest.raises(KeptWorkError, match=r"data[.]query texts"):
        fit(toy.TRAIN.assign(query="rain"))
    with pytest.raises(KeptWorkError, match="holds another training: validation"):
        fit(valid=toy.VALID.assign(text="rain"))
    monkeypatch.setitem(losses.LOSSES, "mine", Loss(mine(2.0), "order"))
    with pytest.raises(KeptWorkError, match=r"holds another training: loss.0.0.closure.factor: 1.0, now 2.0"):
        fit()
    reused = fit(reuse=["loss"])
    assert "loss is not what made it" in reused.training.notes[0]
    assert "loss is not what made it" in str(reused.training)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    with pytest.raises(ValueError, match="reuse must name parts of the work"):
        fit(reuse=["settings.seed"])


def test_a_training_without_a_checkpoint_is_begun_anew(model: tiny.Tiny, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 2, "folder": tmp_path / "kept", "save_every": 2}
    toy.distillation(model.folder, **options).fit(toy.TRAIN, None)
    for checkpoint in (tmp_path / "kept").glob("checkpoint-*"):
        checkpoint.rename(tmp_path / "away")  # as if it had been stopped before the first
    toy.distillation(model.folder, **options, seed=7).fit(toy.TRAIN, None)
    assert list((tmp_path / "kept").glob("checkpoint-*"))


def test_a_training_on_several_runs_is_resumed_and_is_that_of_these_runs(model: tiny.Tiny, tmp_path: Path) -> None:
    upside_down = toy.TRAIN.assign(rank=5 - toy.TRAIN["rank"], score=-toy.TRAIN["score"])
    options: dict[str, Any] = {"steps": 4, "sample_size": 3, "sampling": "random", "save_every": 2}

    def trained(runs: list[pd.DataFrame], folder: str, **changes: Any) -> Any:
        one = toy.distillation(model.folder, **options | changes, folder=tmp_path / folder)
        one.fit(run=runs, text=toy.Texts())
        return one

    whole = trained([toy.TRAIN, upside_down], "whole")
    assert (whole.training.queries, whole.training.lists) == (6, 12)
    assert ("lists per epoch", 12) in list(whole.training.table.itertuples(index=False, name=None))
    trained([toy.TRAIN, upside_down], "kept")
    shutil.rmtree(tmp_path / "kept" / "checkpoint-4")  # as if it had been stopped between steps 2 and 4
    resumed = trained([toy.TRAIN, upside_down], "kept", resume=True)
    assert toy.same(toy.weights(resumed.reranker), toy.weights(whole.reranker))
    for others in ([upside_down, toy.TRAIN], [toy.TRAIN, toy.TRAIN], [toy.TRAIN]):
        with pytest.raises(KeptWorkError, match=r"holds another training: .*data\.r"):
            trained(others, "kept", resume=True)
