from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import tiny

import pyterrier_rankdistillm
from pyterrier_rankdistillm import MonoElectra, TruncationWarning
from pyterrier_rankdistillm.demo import DemoDataset

DEMO = Path(pyterrier_rankdistillm.__file__).parent / "demo"
needs_checkpoint = pytest.mark.skipif(
    not (DEMO / "checkpoint" / "model.safetensors").exists(), reason="demo/checkpoint has not been made yet"
)


@pytest.fixture
def dataset() -> DemoDataset:
    return pt.get_dataset("rankdistillm:demo")


def nothing(frame: pd.DataFrame) -> bool:
    return not frame.isna().to_numpy().any()


def test_it_is_found_by_name_and_listed(dataset: DemoDataset) -> None:
    assert isinstance(dataset, DemoDataset)
    assert repr(dataset) == "DemoDataset('rankdistillm:demo')"
    names = pt.datasets.list_datasets(en_only=False)["dataset"].tolist()
    assert "rankdistillm:demo" in names


def test_unknown_names_are_errors_that_list_the_known_ones() -> None:
    with pytest.raises(KeyError, match="rankdistillm:dema") as error:
        pt.get_dataset("rankdistillm:dema")
    assert "rankdistillm:dema is unknown; there are: demo" in str(error.value.__cause__)


def test_topics(dataset: DemoDataset) -> None:
    topics = dataset.get_topics()
    assert list(topics.columns) == ["qid", "query"]
    assert len(topics) >= 25
    assert topics["qid"].is_unique
    assert topics["query"].is_unique
    assert topics["query"].str.strip().eq(topics["query"]).all()
    assert topics["query"].str.len().gt(0).all()
    assert dataset.get_topics_lang() == "en"


def test_qrels_are_graded_0_to_3(dataset: DemoDataset) -> None:
    qrels = dataset.get_qrels()
    assert list(qrels.columns) == ["qid", "docno", "label", "iteration"]
    assert qrels["label"].dtype == np.int64
    assert set(qrels["label"]) == {0, 1, 2, 3}
    assert not qrels.duplicated(["qid", "docno"]).any()


def test_every_query_has_an_answer(dataset: DemoDataset) -> None:
    best = dataset.get_qrels().groupby("qid")["label"].max()
    assert set(best.index) == set(dataset.get_topics()["qid"])
    assert best.eq(3).all()


def test_corpus(dataset: DemoDataset) -> None:
    passages = list(dataset.get_corpus_iter(verbose=False))
    assert len(passages) >= 150
    assert all(passage.keys() == {"docno", "text"} for passage in passages)
    assert len({passage["docno"] for passage in passages}) == len(passages)
    assert len({passage["text"] for passage in passages}) == len(passages)
    assert all(20 <= len(passage["text"].split()) <= 200 for passage in passages)
    assert dataset.get_corpus_lang() == "en"


def test_judged_passages_are_in_the_corpus(dataset: DemoDataset) -> None:
    docnos = {passage["docno"] for passage in dataset.get_corpus_iter(verbose=False)}
    assert set(dataset.get_qrels()["docno"]) <= docnos


def test_the_corpus_iterator_draws_a_bar_only_if_asked(
    dataset: DemoDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    list(dataset.get_corpus_iter(verbose=False))
    assert capsys.readouterr().err == ""
    list(dataset.get_corpus_iter())
    assert "rankdistillm:demo" in capsys.readouterr().err


def test_text_loader_keeps_the_rows_and_their_order(dataset: DemoDataset) -> None:
    texts = {passage["docno"]: passage["text"] for passage in dataset.get_corpus_iter(verbose=False)}
    docnos = [*list(texts)[5:2:-1], next(iter(texts)), next(iter(texts))]
    frame = pd.DataFrame({"qid": "q1", "docno": docnos, "score": 1.0}, index=[9, 9, 2, 0, 1])
    before = frame.copy()
    out = dataset.text_loader()(frame)
    pd.testing.assert_frame_equal(out.drop(columns="text"), before)
    pd.testing.assert_frame_equal(frame, before)
    assert out["text"].tolist() == [texts[docno] for docno in docnos]


def test_text_loader_works_through_get_text(dataset: DemoDataset) -> None:
    docno = next(iter(dataset.get_corpus_iter(verbose=False)))["docno"]
    frame = pd.DataFrame({"qid": ["q1"], "docno": [docno]})
    out = pt.text.get_text(dataset, ["text"])(frame)
    assert out["text"].tolist() == dataset.text_loader()(frame)["text"].tolist()


def test_text_loader_names_an_unknown_docno(dataset: DemoDataset) -> None:
    with pytest.raises(KeyError, match="no passage 'x1'"):
        dataset.text_loader()(pd.DataFrame({"docno": ["x1"]}))


def test_text_loader_of_an_empty_frame_has_the_column(dataset: DemoDataset) -> None:
    out = dataset.text_loader()(pd.DataFrame(columns=["qid", "docno"]))
    assert list(out.columns) == ["qid", "docno", "text"]


def test_text_loader_is_inspectable(dataset: DemoDataset) -> None:
    assert pt.inspect.transformer_inputs(dataset.text_loader()) == [["docno"]]
    assert pt.inspect.transformer_outputs(dataset.text_loader(), ["qid", "docno"]) == ["qid", "docno", "text"]


def test_unknown_fields_and_variants_are_errors(dataset: DemoDataset) -> None:
    with pytest.raises(ValueError, match="the field 'text' only, got fields=\\['title'\\]"):
        dataset.text_loader(["title"])
    for method in (dataset.get_topics, dataset.get_qrels, dataset.get_results):
        with pytest.raises(ValueError, match="has no variants, got 'dev'"):
            method("dev")


def test_the_bm25_run(dataset: DemoDataset) -> None:
    run = dataset.get_results()
    assert {"qid", "query", "docno", "score", "rank"} <= set(run.columns)
    assert nothing(run)
    assert set(run["qid"]) == set(dataset.get_topics()["qid"])
    assert not run.duplicated(["qid", "docno"]).any()
    by_query = run.sort_values(["qid", "rank"]).groupby("qid")
    assert by_query["rank"].apply(lambda ranks: list(ranks) == list(range(len(ranks)))).all()
    assert by_query["score"].apply(lambda scores: scores.is_monotonic_decreasing).all()
    assert run["rank"].max() < 50
    docnos = {passage["docno"] for passage in dataset.get_corpus_iter(verbose=False)}
    assert set(run["docno"]) <= docnos


def test_a_pipeline_can_start_with_the_bm25_run(dataset: DemoDataset) -> None:
    pipeline = pt.Transformer.from_df(dataset.get_results()) >> dataset.text_loader()
    out = pipeline(dataset.get_topics())
    assert len(out) == len(dataset.get_results())
    assert nothing(out)


@needs_checkpoint
def test_the_demo_checkpoint_re_ranks(dataset: DemoDataset) -> None:
    topics = dataset.get_topics().head(3)
    bm25 = pt.Transformer.from_df(dataset.get_results()) % 10
    out = (bm25 >> dataset.text_loader() >> MonoElectra("rankdistillm:demo", device="cpu"))(topics)
    assert len(out) == len(bm25(topics))
    assert out["score"].std() > 0.1


@needs_checkpoint
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There are shared pipeline components")  # PyTerrier's hint to plan="tree"
def test_the_demo_checkpoint_is_better_than_bm25(dataset: DemoDataset) -> None:
    from pyterrier.measures import nDCG

    bm25 = pt.Transformer.from_df(dataset.get_results()) >> dataset.text_loader()
    mono = MonoElectra("rankdistillm:demo", device="cpu")
    table = pt.Experiment([bm25, bm25 >> mono], dataset.get_topics(), dataset.get_qrels(), [nDCG @ 10])
    first, re_ranked = table["nDCG@10"]
    assert re_ranked > first


@needs_checkpoint
def test_the_demo_checkpoint_is_small_and_has_a_card() -> None:
    files = list((DEMO / "checkpoint").iterdir())
    assert sum(file.stat().st_size for file in files) <= 30e6
    assert "README.md" in {file.name for file in files}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("pyterrier_pisa")
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_question_of_ones_own_is_answered_over_a_live_index(
    dataset: DemoDataset, home: Path, capfd: pytest.CaptureFixture[str], model: tiny.Tiny
) -> None:
    index = dataset.get_index()
    pipeline = index.bm25(num_results=10) >> dataset.text_loader() >> MonoElectra(model.folder, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # the tiny model reads 16 tokens
        found = pipeline.search("why does it go stale? (bread)")
    assert sorted(found["rank"]) == list(range(len(found)))
    assert found["text"].str.contains("stale").any()
    assert [path.suffix for path in (home / "rankdistillm").iterdir()] == [".pisa"]
    made = index.path.stat()
    assert dataset.get_index().path.stat() == made  # the second time it is there
    assert capfd.readouterr().out == ""
    with pytest.raises(ValueError, match="has no variants"):
        dataset.get_index("terrier")


def test_the_run_that_ships_is_that_of_the_live_index(dataset: DemoDataset, home: Path) -> None:
    assert not home.exists()
    topics = dataset.get_topics().head(8)
    live = dataset.get_index().bm25(num_results=50)(topics)
    shipped = dataset.get_results()
    for qid, run in live.groupby("qid"):
        assert run["docno"].tolist() == shipped[shipped["qid"] == qid]["docno"].tolist()
