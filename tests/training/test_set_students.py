"""Set encoders as students: lists stay whole, and what does not fit in memory is computed again, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import tiny
import torch
import toy
from scipy.stats import kendalltau

from pyterrier_rankdistillm import Checkpoint, Distillation, FineTuning, MonoElectra, SetEncoderReRanker, runs
from pyterrier_rankdistillm.scoring.sets import SetEncoder

FIXTURE = Path(__file__).parents[1] / "parity" / "set-encoder"

pytestmark = pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.TruncationWarning")


@pytest.fixture(scope="module")
def student(model: tiny.Tiny) -> Checkpoint:
    return Checkpoint.open(model.folder).as_set_encoder(extra_token_seed=3)


def trained(student: Any, **changes: Any) -> Distillation:
    one = toy.distillation(student, **changes)
    one.fit(toy.TRAIN)
    return one


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The passages of each list that is encoded with gradients, and whether layers are computed again."""
    noted: list[tuple[int, bool]] = []
    together = SetEncoder.together

    def note(self: SetEncoder, batches: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            noted.append((sum(len(ids) for ids, _, _ in batches), self.encoder.recompute))
        return together(self, batches)

    monkeypatch.setattr(SetEncoder, "together", note)
    return noted


def test_lists_stay_whole_and_layers_are_computed_again(student: Checkpoint, seen: list[tuple[int, bool]]) -> None:
    """Dropout is replayed, so that the weights come out as without."""
    changes: dict[str, Any] = {"steps": 2, "dropout": 0.2, "batch_tokens": 40}
    whole = trained(student, **changes).reranker
    assert seen == [(6, False)] * 8
    seen.clear()
    again = trained(student, memory_tokens=1, **changes).reranker
    assert seen == [(6, True)] * 8
    for name, tensor in toy.weights(whole).items():
        torch.testing.assert_close(toy.weights(again)[name], tensor, rtol=0, atol=2e-5, msg=name)
    assert not toy.same(toy.weights(whole), student.encoder.state_dict())


@pytest.mark.filterwarnings("ignore:.*no validation was better than that before:UserWarning")
@pytest.mark.parametrize("estimator", [FineTuning, Distillation])
def test_whatever_names_it_the_student_becomes_a_set_encoder(
    estimator: type[FineTuning] | type[Distillation], student: Checkpoint, tmp_path: Path
) -> None:
    folder = student.save(tmp_path / "start")
    settings = {**toy.QUICK, "steps": 1, "sample_size": 3}
    scores = []
    for given in (student, folder, SetEncoderReRanker(folder, batch_tokens=100)):
        one = estimator(given, **settings)
        one.fit(toy.TRAIN, toy.QRELS, toy.VALID, toy.QRELS)
        assert type(one.reranker) is SetEncoderReRanker
        scores.append(one(toy.VALID)["score"])
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores[0], scores[2], rtol=0, atol=1e-5)
    assert one.reranker.batch_tokens == 100
    second = Distillation(estimator(folder, **settings), **settings)
    second.student.fit(toy.TRAIN, toy.QRELS)
    second.fit(toy.TRAIN, None)
    assert type(second.reranker) is SetEncoderReRanker
    saved = SetEncoderReRanker(one.reranker.save(tmp_path / "saved"))
    np.testing.assert_allclose(saved(toy.VALID)["score"], one(toy.VALID)["score"], rtol=0, atol=1e-5)


def test_a_teacher_s_name_opens_a_set_encoder_as_one(student: Checkpoint, model: tiny.Tiny, tmp_path: Path) -> None:
    folder = student.save(tmp_path / "teacher")
    one = toy.distillation(model.folder, teacher=folder, steps=1)
    (toy.first_stage() >> one).fit(toy.TOPICS, None)  # MonoElectra(folder) is an error
    made = runs.make_teacher_run(
        str(folder), toy.first_stage(), toy.TOPICS, tmp_path / "sets.run", depth=6, verbose=False
    )
    expected = SetEncoderReRanker(folder)(toy.RUN)
    both = made.read().merge(expected, on=["qid", "docno"], suffixes=("", "_expected"))
    assert len(both) == len(toy.RUN)
    np.testing.assert_allclose(both["score"], both["score_expected"], rtol=0, atol=1e-5)


def tau(run: pd.DataFrame, teacher: pd.DataFrame) -> float:
    """The mean over queries of Kendall's tau between two rankings of the same documents."""
    both = run.merge(teacher, on=["qid", "docno"], suffixes=("", "_teacher"))
    return float(np.mean([kendalltau(q["score"], q["score_teacher"]).statistic for _, q in both.groupby("qid")]))


def learnt(student: Checkpoint, *, queries: int, depth: int, **settings: Any) -> tuple[float, float]:
    """Tau to the demo checkpoint's ranking of the training lists, before and after learning it."""
    dataset = pt.get_dataset("rankdistillm:demo")
    run = (pt.Transformer.from_df(dataset.get_results()) % depth >> dataset.text_loader())(
        dataset.get_topics().head(queries)
    )
    teacher = MonoElectra("rankdistillm:demo", device="cpu", doc_length=64)(run)
    distilled = Distillation(student, device="cpu", verbose=False, **settings)
    distilled.fit(teacher)
    before = SetEncoderReRanker(student, device="cpu", doc_length=settings["doc_length"])(run)
    return tau(before, teacher), tau(distilled(run), teacher)


def test_a_student_ranks_its_training_lists_better_than_before() -> None:
    before, after = learnt(
        Checkpoint.open(FIXTURE / "with-token"), queries=4, depth=8, steps=40, batch_size=4, learning_rate=3e-3,
        doc_length=64, seed=1,
    )  # fmt: skip
    assert after > before + 0.3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("extra_token_seed", [None, 1])
def test_the_demo_checkpoint_learns_to_rank_sets(extra_token_seed: int | None) -> None:
    student = Checkpoint.open("rankdistillm:demo").as_set_encoder(extra_token_seed=extra_token_seed)
    before, after = learnt(
        student, queries=4, depth=8, steps=12, batch_size=4, learning_rate=1e-4, doc_length=64, seed=1
    )
    print(f"tau to the teacher: {before:.3f} before, {after:.3f} after")
    assert after > before
