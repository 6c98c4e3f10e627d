"""Texts are fetched for the systems that want them, and kept where a first stage has its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_rankdistillm import Distillation, MonoElectra, reproduce
from pyterrier_rankdistillm.reproduction import ReproductionError
from pyterrier_rankdistillm.reproduction.texts import wants_text

DEMO = pt.get_dataset("rankdistillm:demo")
TOPICS, QRELS = DEMO.get_topics().head(3), DEMO.get_qrels()
GET = DEMO.text_loader()
M = MonoElectra("rankdistillm:demo")
LENGTH = pt.apply.doc_score(lambda row: float(len(row["text"])))
SLIDING = pt.text.sliding(text_attr="text", prepend_attr=None)


class Own(pt.Transformer):
    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        return pt.model.add_ranks(inp.assign(score=[float(len(row["text"])) for _, row in inp.iterrows()]))


WANTING = {
    "a re-ranker": M,
    "a cutoff before one": pt.RankCutoff(5) >> M,
    "a cutoff after one": M % 5,
    "a function": LENGTH,
    "any function": pt.apply.generic(lambda frame: frame),
    "a function that may read texts before they are loaded": pt.apply.query(lambda row: row["query"]) >> GET >> M,
    "what cannot be inspected": pt.rewrite.reset() >> GET >> M,
    "a class of the user's": Own(),
    "a sum": M + M,
    "half a sum": (GET >> M) + M,
    "features": M**M,
    "passages": SLIDING >> M >> pt.text.max_passage(),
    "an estimator": Distillation(M),
}
HAVING = {
    "a loader": GET >> M,
    "a loader before a function": GET >> LENGTH,
    "a loader before passages": GET >> SLIDING >> M >> pt.text.max_passage(),
    "a cascade": GET >> M % 20 >> M,
    "two loaders": (GET >> M) + (GET >> M),
    "no texts at all": pt.Transformer.identity(),
    "an estimator with texts": Distillation(M, text=DEMO),
}


@pytest.mark.parametrize("name", WANTING)
def test_these_want_texts(name: str) -> None:
    assert wants_text(WANTING[name])


@pytest.mark.parametrize("name", HAVING)
def test_these_do_not(name: str) -> None:
    assert not wants_text(HAVING[name])


def given(**changes: Any) -> dict[str, Any]:
    bm25 = pt.Transformer.from_df(DEMO.get_results())
    return {"first_stage": {"vaswani": bm25 % 5}, "topics": {"vaswani": TOPICS}, "qrels": {"vaswani": QRELS}, **changes}


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passages of ir_datasets' vaswani cannot be had."""
    from pyterrier_rankdistillm.reproduction import tasks

    def refuse(*_: Any, **__: Any) -> None:
        raise tasks.DataUnavailable("The collection was opened.")

    monkeypatch.setattr(tasks, "add_text", refuse)


def value(result: Any, system: str) -> float:
    cells = result.cells[(result.cells["setting"] == "vaswani") & (result.cells["system"] == system)]
    return float(cells["value"].iloc[0])


def test_a_system_with_its_own_texts_opens_no_collection() -> None:
    assert value(reproduce("tirex", {"base": GET >> M}, **given()), "base") > 0
    with pytest.raises(ReproductionError, match="The collection was opened"):
        reproduce("tirex", {"base": M}, **given())
    with pytest.raises(ReproductionError, match="The collection was opened"):  # one of its systems wants texts
        reproduce("tirex", {"base": GET >> M, "other": M}, **given())


def test_a_first_stage_with_its_own_texts_opens_no_collection(tmp_path: Path) -> None:
    bm25 = pt.Transformer.from_df(DEMO.get_results())
    expected = value(reproduce("tirex", {"base": GET >> M}, **given()), "base")
    once = given(first_stage={"vaswani": bm25 % 5 >> GET}, folder=tmp_path / "kept")
    assert value(reproduce("tirex", {"base": M}, **once), "base") == expected
    files = [file.name for file in (tmp_path / "kept" / "runs").rglob("*.jsonl.gz")]
    assert files == ["first-stage.texts.jsonl.gz"]
    again = reproduce("tirex", {"base": M, "length": LENGTH}, **once)  # resumed: the first stage does not run again
    assert value(again, "base") == expected
    assert any("first stage was not run again" in note for note in again.notes)


def test_texts_of_an_interrupted_first_stage_are_found_again(tmp_path: Path) -> None:
    topics = DEMO.get_topics()

    class Breaks(pt.Transformer):
        calls = 0

        def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
            Breaks.calls += 1
            if Breaks.calls == 3:
                raise KeyboardInterrupt
            return (pt.Transformer.from_df(DEMO.get_results()) % 3 >> GET).transform(inp)

    once = given(topics={"vaswani": topics}, folder=tmp_path / "kept") | {"first_stage": {"vaswani": Breaks()}}
    with pytest.raises(KeyboardInterrupt):
        reproduce("tirex", {"base": M}, **once)
    resumed = value(reproduce("tirex", {"base": M}, **once), "base")
    at_once = given(topics={"vaswani": topics}) | {"first_stage": {"vaswani": Breaks()}}
    assert resumed == value(reproduce("tirex", {"base": M}, **at_once), "base")
