"""``reproduce`` end to end: on small literal corpora, the demo collection, and the real first-stage runs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from math import log2, sqrt
from pathlib import Path
from typing import Any

import ir_datasets
import pandas as pd
import pyterrier as pt
import pytest
import tiny
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericDoc, GenericQuery, TrecQrel

from pyterrier_rankdistillm import (
    Checkpoint,
    KeptWorkError,
    MonoElectra,
    Reproduction,
    SetEncoderReRanker,
    cli,
    reproduce,
    runs,
)
from pyterrier_rankdistillm.reproduction import ReproductionError
from pyterrier_rankdistillm.reproduction.arguments import CONDENSED
from pyterrier_rankdistillm.reproduction.catalogue import FIRST_STAGE, Cell, Table, table, tasks

SECOND = 1 / log2(3)
TOPICS = pd.DataFrame({"qid": ["1", "2"], "query": ["why does bread rise", "why does it rain"]})
QRELS = pd.DataFrame([("1", "a", 3), ("1", "b", 1), ("2", "c", 2)], columns=["qid", "docno", "label"])
RUN = pd.DataFrame(
    [("1", "b", 3.0), ("1", "x", 2.0), ("1", "a", 1.0), ("2", "x", 2.0), ("2", "c", 1.0)],
    columns=["qid", "docno", "score"],
)
TEXT = pd.DataFrame({"docno": ["a", "b", "c", "x"], "text": ["bread can rise", "bread", "rain", "the cat"]})
GIVEN: dict[str, Any] = {"topics": TOPICS, "qrels": QRELS, "text": TEXT, "first_stage": RUN}


class Words(pt.Transformer):
    """Counts the query's words in the text; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[pd.DataFrame] = []

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        self.asked.append(inp)
        scores = [float(len(set(q.split()) & set(t.split()))) for q, t in zip(inp["query"], inp["text"], strict=True)]
        return pt.model.add_ranks(inp.drop(columns=["rank"]).assign(score=scores))


def cells(result: Reproduction, measure: str = "nDCG@10") -> dict[tuple[str, str], float]:
    rows = result.cells[result.cells["measure"] == measure]
    return dict(zip(zip(rows["setting"], rows["system"], strict=True), rows["value"], strict=True))


def statuses(result: Reproduction) -> dict[tuple[str, str], str]:
    rows = result.comparison[result.comparison["status"] != "not run"]
    return dict(zip(zip(rows["setting"], rows["system"], strict=True), rows["status"], strict=True))


# --- a small TREC DL --------------------------------------------------------------------------------------------------


def test_numbers_by_hand() -> None:
    result = reproduce("trec-dl-2019", {"words": Words(), "again": Words()}, measures=["RR@10"], **GIVEN)
    ideal = 3 + 1 * SECOND
    first = (1 + 3 * 0.5) / ideal
    assert cells(result) == pytest.approx({
        ("first stage/trec-dl-2019", FIRST_STAGE): (first + SECOND) / 2,
        ("first stage/trec-dl-2019", "words"): 1.0,
        ("first stage/trec-dl-2019", "again"): 1.0,
    })  # fmt: skip
    # On TREC DL only labels of 2 and more are relevant: b, with 1, is not.
    assert cells(result, "RR(rel=2)@10")["first stage/trec-dl-2019", FIRST_STAGE] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert result.baseline == "words"
    table_row = result.table.loc["words"]
    assert table_row.tolist() == pytest.approx([1.0, 1.0])
    by_query = result.per_query.query("system == @FIRST_STAGE and measure == 'nDCG@10'").set_index("qid")
    assert by_query["value"].to_dict() == pytest.approx({"1": first, "2": SECOND})
    assert by_query["query"].to_dict() == dict(zip(TOPICS["qid"], TOPICS["query"], strict=True))


def test_a_single_system_is_tested_against_the_first_stage() -> None:
    result = reproduce("trec-dl-2019", {"words": Words()}, **GIVEN)
    assert result.baseline == FIRST_STAGE
    tested = result.cells.set_index("system")["significant"]
    assert tested[FIRST_STAGE] is None
    assert tested["words"] in (True, False)
    assert reproduce("trec-dl-2019", {"words": Words()}, baseline="words", **GIVEN).baseline == "words"


def test_each_run_is_made_once() -> None:
    words = Words()
    reproduce("trec-dl-2019", {"words": words}, measures=["RR@10", "AP@100"], **GIVEN)
    assert sum(len(frame) for frame in words.asked) == len(RUN)
    assert {"qid", "query", "docno", "text", "score", "rank"} <= set(words.asked[0].columns)


def test_a_live_first_stage_and_finished_runs() -> None:
    result = reproduce(
        "trec-dl-2019",
        {"run": RUN.assign(score=-RUN["score"]), "words": Words()},
        **GIVEN | {"first_stage": {"live": pt.Transformer.from_df(RUN)}},
        baseline=FIRST_STAGE,
    )
    assert result.baseline == FIRST_STAGE
    ideal = 3 + SECOND
    assert cells(result)["live/trec-dl-2019", "run"] == pytest.approx(((3 + 1 * 0.5) / ideal + 1) / 2)


def test_a_set_encoder_is_a_system_beside_its_published_row(model: tiny.Tiny) -> None:
    sets = SetEncoderReRanker(Checkpoint.open(model.folder).as_set_encoder(), device="cpu")
    result = reproduce("trec-dl-2019", {"webis/set-encoder-base": sets}, **GIVEN)
    row = result.comparison.query("system == 'webis/set-encoder-base'").iloc[0]
    assert row["published as"] == "webis/set-encoder-base"
    whole = sets(RUN.merge(TOPICS, on="qid").merge(TEXT, on="docno"))
    expected = pt.Evaluate(whole, QRELS, metrics=["ndcg_cut_10"])["ndcg_cut_10"]
    assert cells(result)["first stage/trec-dl-2019", "webis/set-encoder-base"] == pytest.approx(expected)
    unseen = result.comparison.query("system == 'webis/set-encoder-large' and setting == 'colbertv2/trec-dl-2019'")
    assert unseen["readme"].tolist() == [0.789]


def test_too_few_topics_do_not_compare() -> None:
    result = reproduce("trec-dl-2019", {"webis/monoelectra-base": Words()}, **GIVEN)
    assert set(statuses(result).values()) == {"not comparable"}
    reasons = result.comparison["reason"].iloc[0]
    assert "another first stage than the paper's" in reasons
    assert "2 of 43 topics of trec-dl-2019" in reasons
    assert result.agrees is False


def test_what_is_reproduced_and_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up table of which the small corpus is a whole, full-depth task."""
    module = importlib.import_module("pyterrier_rankdistillm.reproduction.reproducing")
    task = table("trec-dl-2019").tasks[0]
    setting = "bm25/trec-dl-2019"
    first = ((1 + 3 * 0.5) / (3 + SECOND) + SECOND) / 2
    published = (
        Cell("paper", FIRST_STAGE, setting, round(first, 3), None),
        Cell("paper", "base", setting, 0.998, True),
        Cell("paper", "large", setting, 0.994, True),
    )
    small = Table("trec-dl-2019", (type(task)(task.name, task.corpus, task.dataset, 2, relevant=2),), published)
    monkeypatch.setattr(module, "table", lambda _: small)
    filler = pd.DataFrame([(q, f"f{n}", -float(n)) for q in "12" for n in range(99)], columns=RUN.columns)
    run = pd.concat([RUN, filler])
    texts = pd.concat([TEXT, pd.DataFrame({"docno": filler["docno"].unique(), "text": "nothing"})])
    given = GIVEN | {"first_stage": run, "text": texts}

    result = reproduce("trec-dl-2019", {"mine": Words(), "large": Words()}, **given, published={"mine": "base"})
    assert statuses(result) == {
        (setting, FIRST_STAGE): "reproduced",
        (setting, "mine"): "reproduced",
        (setting, "large"): "differs",
    }
    assert result.agrees is False
    assert result.comparison["setting"].iloc[0] == setting  # it goes under the paper's name
    assert reproduce("trec-dl-2019", {"base": Words()}, **given).agrees is True
    as_run = reproduce("trec-dl-2019", {"base": run}, **given)
    assert statuses(as_run)[setting, "base"] == "differs"
    assert as_run.comparison["tolerance"].iloc[1] == 0.0005

    shallow = reproduce("trec-dl-2019", {"base": Words()}, **given, depth=50)
    assert set(shallow.comparison["reason"].head(2)) == {"depth 50, not 100"}
    others = pd.concat([run, pd.DataFrame([("1", "z", 9.0)], columns=RUN.columns)])
    strange = reproduce("trec-dl-2019", {"base": others}, **given)
    assert cells(strange) == cells(as_run)  # what the first stage did not find does not count
    assert any("'base' on trec-dl-2019: 4 of the 204 rows" in note for note in strange.notes), strange.notes


def test_condensed_lists_are_marked() -> None:
    given = GIVEN | {"text": TEXT[TEXT["docno"] != "x"]}
    with pytest.raises(ReproductionError, match="text must have the 5 documents to be ranked for trec-dl-2019, got 3"):
        reproduce("trec-dl-2019", {"words": Words()}, **given)
    result = reproduce("trec-dl-2019", {"words": Words(), "run": RUN}, **given, condensed=True)
    setting = "first stage/trec-dl-2019"
    ideal = 3 + SECOND
    assert cells(result) == pytest.approx({
        (setting, FIRST_STAGE): ((1 + 3 * 0.5) / ideal + SECOND) / 2,
        (setting, CONDENSED): ((1 + 3 * SECOND) / ideal + 1) / 2,
        (setting, "words"): 1.0,
        (setting, "run"): ((1 + 3 * SECOND) / ideal + 1) / 2,
    })  # fmt: skip
    assert result.table.index.tolist() == [FIRST_STAGE, CONDENSED, "words (condensed)", "run (condensed)"]
    reasons = result.comparison.set_index("system")["reason"]
    assert "condensed: 3 of 5 documents" in reasons["words"]
    assert "condensed" not in reasons[FIRST_STAGE].iloc[0]
    assert any("Condensed lists" in note for note in result.notes)


def test_duplicates_are_dropped_and_said(tmp_path: Path) -> None:
    twice = pd.concat([RUN, RUN.iloc[:1].assign(score=-9.0)])
    result = reproduce("trec-dl-2019", {}, **GIVEN | {"first_stage": twice})
    assert (
        "a frame listed documents twice for a topic; the better-ranked were kept, 1 rows were dropped." in result.notes
    )
    assert cells(result) == cells(reproduce("trec-dl-2019", {}, **GIVEN))
    file = tmp_path / "bm25.run"
    file.write_text("1 Q0 b 1 3.0 t\n1 Q0 b 2 2.0 t\n2 Q0 c 1 1.0 t\n")
    result = reproduce("trec-dl-2019", {}, **GIVEN | {"first_stage": file})
    assert "bm25.run listed documents twice" in result.notes[0]
    assert result.cells["documents"].tolist() == [2]


def test_two_years_and_their_mean() -> None:
    later = TOPICS.assign(qid=["8", "9"])
    rename = {"1": "8", "2": "9"}
    given = {
        "topics": {"trec-dl-2019": TOPICS, "trec-dl-2020": later},
        "qrels": pd.concat([QRELS, QRELS.assign(qid=QRELS["qid"].map(rename))]),
        "text": TEXT,
    }
    best = RUN.assign(qid=RUN["qid"].map(rename), score=-RUN["score"])
    result = reproduce("trec-dl", {"words": Words()}, first_stage={"mine": pd.concat([RUN, best])}, **given)
    found = cells(result)
    assert found["mine/mean", FIRST_STAGE] == pytest.approx(
        (found["mine/trec-dl-2019", FIRST_STAGE] + found["mine/trec-dl-2020", FIRST_STAGE]) / 2
    )
    assert list(result.table.columns) == ["mine/trec-dl-2019", "mine/trec-dl-2020", "mine/mean"]

    result = reproduce("trec-dl", {}, first_stage={"bm25": {"trec-dl-2019": RUN}}, **given)
    assert result.not_run["why"].tolist() == ["No first stage was given for it."]

    half = reproduce("trec-dl", {"words": Words()}, first_stage={"mine": RUN}, **given)
    assert list(half.table.columns) == ["mine/trec-dl-2019"]
    assert half.not_run["task"].tolist() == ["trec-dl-2020"]
    assert "has none of its 2 judged topics" in half.not_run["why"].iloc[0]


def test_ablations_compare_their_rows_in_the_mean() -> None:
    given = {"topics": TOPICS, "qrels": QRELS, "text": TEXT, "first_stage": {"bm25": RUN}}
    row = "2000 queries x 100 passages"
    result = reproduce("ablation-size", {"student": Words()}, **given, published={"student": row})
    compared = result.comparison[result.comparison["published as"] == row].set_index("setting")
    assert compared.loc["bm25/mean", ["paper", "status"]].tolist() == [0.682818, "not comparable"]
    assert compared.loc["colbertv2/mean", "status"] == "not run"
    losses = reproduce("ablation-loss", {"webis/monoelectra-base": Words()}, **given)
    systems = set(losses.comparison["published as"])
    assert systems == {FIRST_STAGE, "webis/monoelectra-base", "monoelectra-base-dual-rank-distillm-colbert-adrmse"}


# --- folders ----------------------------------------------------------------------------------------------------------


def test_results_are_saved_and_read_again(tmp_path: Path) -> None:
    result = reproduce("trec-dl-2019", {"words": Words()}, **GIVEN, measures=["RR@10"], folder=tmp_path)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        "per_query.parquet",
        "record.json",
        "result.json",
        "runs/first-stage/trec-dl-2019/first-stage.run.gz",
        "runs/first-stage/trec-dl-2019/words.run.gz",
        "runs/first-stage/trec-dl-2019/words.run.gz.json",
    ]
    again = Reproduction.open(tmp_path)
    assert str(again) == str(result)
    for name in ("cells", "comparison", "per_query", "tasks", "not_run", "table"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name), check_column_type=False)
    assert (again.provenance, again.notes, again.agrees) == (result.provenance, result.notes, result.agrees)


def test_all_systems_are_compared_before_any_work(tmp_path: Path) -> None:
    asked: list[str] = []

    def system(name: str, factor: float) -> pt.Transformer:
        def score(row: Any) -> float:
            asked.append(name)
            return factor * len(row["text"])

        return pt.apply.doc_score(score)

    kept = {"one": system("one", 1.0), "two": system("two", 1.0), "three": system("three", 1.0)}
    reproduce("trec-dl-2019", kept, **GIVEN, folder=tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.run.gz")}
    asked.clear()
    changed = {"new": Words(), "one": system("one", 1.0), "two": system("two", 2.0), "three": system("three", 3.0)}
    with pytest.raises(KeptWorkError) as caught:
        reproduce("trec-dl-2019", changed, **GIVEN, folder=tmp_path)
    lines = str(caught.value).splitlines()
    assert any("two.run.gz" in line and "systems.two.fn.closure.factor: 1.0, now 2.0" in line for line in lines)
    assert any("three.run.gz" in line and "systems.three.fn.closure.factor: 1.0, now 3.0" in line for line in lines)
    assert not any("systems.one" in line or "systems.new" in line for line in lines)
    assert "reuse=['systems.two', 'systems.three']" in lines[-1]
    assert asked == changed["new"].asked == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.run.gz")} == before

    with pytest.raises(ValueError, match=r"reuse must name what an error printed, of .*systems.two.*, got 'two'"):
        reproduce("trec-dl-2019", changed, **GIVEN, folder=tmp_path, reuse=["two"])
    result = reproduce("trec-dl-2019", changed, **GIVEN, folder=tmp_path, reuse=["systems.two", "systems.three"])
    assert asked == []
    assert any(note.startswith("two: systems.two is not what made it (fn.closure.factor: 1.0") for note in result.notes)
    assert any(note.startswith("one was not run again, but taken from runs/") for note in result.notes)
    assert "systems.two is not what made it" in result.to_html()
    reproduce("trec-dl-2019", changed, **GIVEN, folder=tmp_path)  # both go on from then
    reproduce("trec-dl-2019", {"two": system("two", 1.0)}, **GIVEN, folder=tmp_path)


def test_an_interrupted_reproduction_goes_on(tmp_path: Path) -> None:
    class Stopped(Words):
        def transform(self, inp: pd.DataFrame) -> pd.DataFrame:  # noqa: ARG002
            raise KeyboardInterrupt

    first, second = Words(), Words()
    with pytest.raises(KeyboardInterrupt):
        reproduce("trec-dl-2019", {"first": first, "second": Stopped()}, **GIVEN, folder=tmp_path)
    assert not (tmp_path / "result.json").exists()
    again = Words()
    result = reproduce("trec-dl-2019", {"first": again, "third": second}, **GIVEN, folder=tmp_path)
    assert again.asked == []  # its run was there
    assert len(second.asked) == 1
    *told, note = str(result).splitlines()
    assert "first was not run again, but taken from runs/first-stage/trec-dl-2019/first.run.gz, made 2" in note
    assert "\n".join(told) == str(reproduce("trec-dl-2019", {"first": Words(), "third": Words()}, **GIVEN))


def test_runs_of_other_work_are_not_taken(tmp_path: Path, checkpoint: Callable[[str], Any]) -> None:
    reproduce("trec-dl-2019", {"words": Words()}, **GIVEN, folder=tmp_path)
    with pytest.raises(FileExistsError, match="is another run"):
        reproduce("trec-dl-2019", {"words": Words()}, **GIVEN | {"first_stage": RUN.iloc[1:]}, folder=tmp_path)
    with pytest.raises(FileExistsError, match=r"words.run.gz exists and is of other work"):
        reproduce(
            "trec-dl-2019", {"words": MonoElectra(checkpoint("lightning-ir-hub").folder)}, **GIVEN, folder=tmp_path
        )


@pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.TruncationWarning")
def test_what_it_was_made_with(tmp_path: Path, checkpoint: Callable[[str], Any]) -> None:
    runs.write(RUN, tmp_path / "bm25.run.gz")
    model = MonoElectra(checkpoint("lightning-ir-hub").folder, doc_length=8)
    result = reproduce("trec-dl-2019", {"tiny": model}, **GIVEN | {"first_stage": tmp_path / "bm25.run.gz"})
    made = result.provenance
    assert {"revision", "dtype", "weights", "device"} <= set(made["systems"]["tiny"])
    assert (made["systems"]["tiny"]["doc_length"], made["systems"]["tiny"]["dtype"]) == (8, "float32")
    record = made["runs"][0]
    assert record["first stage"] == "bm25"
    assert record["first stage's run"]["source"] == "bm25.run.gz"
    assert len(record["first stage's run"]["md5"]) == len(record["systems"]["tiny"]["md5"]) == 32
    assert (record["query fields"], record["document fields"], record["topics"]) == (["query"], ["text"], 2)
    assert made["versions"]["pandas"] == pd.__version__
    assert made["hardware"]["cores"] >= 1
    json.dumps(made)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        reproduce(
            "trec-dl-2019",
            {"a": Words(), "first stage": Words(), "b/": RUN, "b": Words()},
            first_stage=RUN, baseline="c", mode="other", depth=101, published={"d": "e"}, condensed=True,  # type: ignore[arg-type]
        )  # fmt: skip
    for what in (
        "names of systems must be strings, and not 'first stage'",
        "names of systems must differ in letters and digits",
        "baseline must be one of first stage, a, first stage, b/, b, got 'c'",
        "mode must be one of corrected, as_published, got 'other'",
        "depth must be from 1 to 100, got 101",
        "published must have systems as keys, got 'd'",
        "published rows of trec-dl-2019 are rankgpt-4,",
        "condensed=True ranks only the documents that text has, but text is None",
    ):
        assert what in str(caught.value)


@pytest.mark.parametrize(
    ("system", "error", "what"),
    [
        (1, TypeError, r"system 'a' must be a re-ranker \(any transformer.*got int '1'"),
        ("nothing.run", FileNotFoundError, "system 'a' must be .* a run file .*nothing.run is not there"),
        ("rankdistillm:nothing", ValueError, "system 'a' names no published run: 'rankdistillm:nothing'. There are: "),
    ],
)
def test_what_is_not_a_system(system: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        reproduce("trec-dl-2019", {"a": system}, first_stage=RUN)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "trec-dl-2021"}, "name must be one of trec-dl-2019, .*, got 'trec-dl-2021'"),
        ({"first_stage": {}}, "first_stage must not be empty"),
        ({"first_stage": {"trec-dl-2019": RUN, "bm25": RUN}}, r"got \['bm25'\] beside tasks"),
        ({"first_stage": {"bm25": {"trec-dl-2020": RUN}}}, "'trec-dl-2020', which is not a task of trec-dl-2019"),
        (
            {"first_stage": RUN.drop(columns="docno")},
            "first_stage must have the columns qid, docno, and rank or score",
        ),
        ({"first_stage": RUN.assign(score=float("nan"))}, "score must be a finite number, got nan"),
        ({"qrels": QRELS.assign(qid="7")}, "topics and qrels of trec-dl-2019 must share topics"),
        ({"qrels": QRELS.drop(columns="label")}, "must have the columns qid, docno, label, got no label"),
        ({"qrels": QRELS.assign(label=0.5)}, "qrels must have whole numbers as labels, got dtype float64"),
        ({"topics": TOPICS.drop(columns="query")}, "must have the columns qid, query, got no query"),
        ({"text": TEXT.drop(columns="text")}, "text must have the columns docno, text, got no text"),
        ({"systems": {"x": RUN.assign(docno="no")}}, "run of 'x' must rank documents of the first stage"),
        ({"systems": [Words()]}, "systems must be a mapping of names to systems, got list"),
        ({"systems": {"x": pt.Transformer.from_df(RUN.iloc[1:])}}, "'x' cannot be evaluated.*drops 1 of"),
        ({"measures": ["nope"]}, "measures must be ir-measures' measures, got 'nope'"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    arguments = {"name": "trec-dl-2019", "systems": {"words": Words()}, **GIVEN, **changes}
    with pytest.raises(ValueError, match=what):
        reproduce(**arguments, folder=tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_nothing_to_run_says_what_to_do() -> None:
    with pytest.raises(ReproductionError) as caught:
        reproduce("tirex", {}, first_stage={"vaswani": "no-{task}.run"}, topics=TOPICS, qrels=QRELS)
    assert "- vaswani: not run. There is no file no-vaswani.run. ir_datasets downloads it" in str(caught.value)
    assert "- gov/trec-web-2002, gov/trec-web-2003, gov/trec-web-2004, gov2/trec-tb-2004, " in str(caught.value)


# --- TIREx ------------------------------------------------------------------------------------------------------------


def corpus(name: str, ranking: str, qid: str = "1", relevant: str = "a") -> dict[str, Any]:
    """A task of one topic with one relevant document."""
    return {
        "topics": {name: pd.DataFrame({"qid": [qid], "query": [f"asks for {relevant}"]})},
        "qrels": {name: pd.DataFrame({"qid": [qid], "docno": [relevant], "label": [4]})},
        "first_stage": {
            name: pd.DataFrame({"qid": qid, "docno": list(ranking), "score": [-float(n) for n in range(len(ranking))]})
        },
    }


def joined(*parts: dict[str, Any]) -> dict[str, Any]:
    return {key: {name: frame for part in parts for name, frame in part[key].items()} for key in parts[0]}


LETTERS = pd.DataFrame({"docno": list("abxyz"), "text": list("abxyz")})
DISKS = [
    corpus("disks45/nocr/trec-robust-2004", "xa", "351"),  # the same topic twice: second, then first
    corpus("disks45/nocr/trec7", "ax", "351"),
    corpus("disks45/nocr/trec8", "xya", "401"),
]


def test_modes_means_and_tasks_by_hand() -> None:
    given = joined(*DISKS, corpus("nfcorpus/test", "xa"))
    corrected = reproduce("tirex", {"words": Words()}, **given, text=LETTERS)
    published = reproduce("tirex", {"words": Words()}, **given, text=LETTERS, mode="as_published")
    apart, together = (SECOND + 1 + 0.5) / 3, (1 + 0.5) / 2
    for result, disks, topics in ((corrected, apart, 3), (published, together, 2)):
        found = cells(result)
        assert found["disks45/nocr", FIRST_STAGE] == pytest.approx(disks)
        assert found["nfcorpus", FIRST_STAGE] == pytest.approx(SECOND)
        assert found["arithmetic mean (2 of 13 corpora)", FIRST_STAGE] == pytest.approx((disks + SECOND) / 2)
        assert found["geometric mean (2 of 13 corpora)", FIRST_STAGE] == pytest.approx(sqrt(disks * SECOND))
        assert found["disks45/nocr", "words"] == pytest.approx(1)
        counts = result.cells.set_index(["setting", "system"])["topics"]
        assert counts["disks45/nocr", FIRST_STAGE] == topics
        by_task = result.tasks[result.tasks["system"] == FIRST_STAGE].set_index("task")["value"]
        assert by_task.to_dict() == pytest.approx({
            "disks45/nocr/trec-robust-2004": SECOND, "disks45/nocr/trec7": 1, "disks45/nocr/trec8": 0.5,
            "nfcorpus/test": SECOND,
        })  # fmt: skip
        assert any(note.startswith("disks45/nocr: The topics of trec7 and trec8 recur") for note in result.notes)
    assert set(statuses(corrected).values()) <= {"not compared", "not published"}
    assert corrected.agrees is None
    assert published.agrees is False
    assert published.comparison["reason"].iloc[0].startswith("another first stage than the paper's")


def test_corpora_that_are_missing_are_listed_and_the_rest_runs() -> None:
    result = reproduce("tirex", {"words": Words()}, **joined(*DISKS[:2]), text=LETTERS, mode="as_published")
    left = result.not_run.set_index("task")
    assert len(left) == 27
    assert "data agreement with NIST" in left.loc["disks45/nocr/trec8", "what to do"]
    row = result.comparison.set_index("setting").loc["disks45/nocr"].iloc[0]
    assert row["status"] == "not comparable"
    assert row["reason"].startswith("2 of 3 tasks")
    assert not [setting for setting in result.cells["setting"] if setting in ("arithmetic mean", "geometric mean")]
    assert "27" not in str(result.agrees)


@pytest.mark.slow
def test_all_corpora_make_the_paper_s_means() -> None:
    rankings = {"cranfield": "xa", "vaswani": "xya"}
    given = joined(*(corpus(name, rankings.get(name, "ax"), qid=str(n)) for n, name in enumerate(names(), start=1)))
    result = reproduce("tirex", {"rankzephyr": Words()}, **given, text=LETTERS, mode="as_published")
    found = cells(result)
    assert found["arithmetic mean", FIRST_STAGE] == pytest.approx((11 + SECOND + 0.5) / 13)
    assert found["geometric mean", FIRST_STAGE] == pytest.approx((SECOND * 0.5) ** (1 / 13))
    compared = result.comparison.set_index(["setting", "system"])
    assert compared.loc[("arithmetic mean", "rankzephyr"), "paper"] == 0.418
    assert compared.loc[("arithmetic mean", "rankzephyr"), "status"] == "not comparable"
    assert result.not_run.empty


def test_there_is_no_mean_of_measures_that_differ() -> None:
    """On ANTIQUE labels from 3 are relevant."""
    given = joined(corpus("antique/test", "xa"), corpus("nfcorpus/test", "ax"))
    result = reproduce("tirex", {}, **given, measures=["RR@10"])
    found = result.cells[result.cells["measure"] != "nDCG@10"]
    assert dict(zip(found["setting"], found["measure"], strict=True)) == {
        "antique": "RR(rel=3)@10",
        "nfcorpus": "RR@10",
    }
    assert "There is no arithmetic mean (2 of 13 corpora) of RR@10, since not every setting has it." in result.notes


def test_topics_that_a_system_lacks_are_left_out_as_published_and_said() -> None:
    given = joined(*DISKS)
    lacking = pd.DataFrame({"qid": ["351"], "docno": ["a"], "score": [1.0]})
    with pytest.raises(ReproductionError, match="on disks45/nocr/trec8, got none of them"):
        reproduce("tirex", {"rankzephyr": lacking}, **given)
    two = {"disks45/nocr/trec7": pd.concat([given["first_stage"]["disks45/nocr/trec7"], lacking.assign(qid="352")])}
    topics = {"disks45/nocr/trec7": pd.DataFrame({"qid": ["351", "352"], "query": "?"})}
    qrels = {"disks45/nocr/trec7": pd.DataFrame({"qid": ["351", "352"], "docno": "a", "label": 1})}
    found = {
        mode: reproduce("tirex", {"rankzephyr": lacking}, first_stage=two, topics=topics, qrels=qrels, mode=mode)  # type: ignore[arg-type]
        for mode in ("as_published", "corrected")
    }
    assert cells(found["as_published"])["disks45/nocr", "rankzephyr"] == 1
    assert cells(found["corrected"])["disks45/nocr", "rankzephyr"] == 0.5
    reason = found["as_published"].comparison.set_index("system").loc["rankzephyr", "reason"].iloc[0]
    assert "1 of 2 topics that every system has" in reason


def names() -> list[str]:
    return [task.name for task in tasks().values() if not task.name.startswith("trec-dl")]


def test_cranfield_s_two_numberings() -> None:
    """The run calls the topics 1, 2, 3 by the collection's numbers: 1, 3, 4."""
    topics = pd.DataFrame({"qid": ["1", "2", "3"], "query": ["a", "b", "z"]})
    qrels = pd.DataFrame({"qid": ["1", "2", "3"], "docno": ["a", "b", "z"], "label": 1})
    rows = [("1", "a"), ("1", "x"), ("3", "x"), ("3", "b"), ("4", "z"), ("4", "x")]
    run = pd.DataFrame(rows, columns=["qid", "docno"]).assign(score=[2.0, 1.0] * 3)
    given = {"topics": {"cranfield": topics}, "qrels": {"cranfield": qrels}, "text": LETTERS}
    words = Words()
    corrected = reproduce("tirex", {"words": words}, first_stage={"cranfield": run}, **given)
    assert cells(corrected)["cranfield", FIRST_STAGE] == pytest.approx((1 + SECOND + 1) / 3)
    assert cells(corrected)["cranfield", "words"] == 1
    asked = words.asked[0].groupby("query")["docno"].agg(set).to_dict()
    assert asked == {"a": {"a", "x"}, "b": {"b", "x"}, "z": {"z", "x"}}
    published = reproduce("tirex", {"words": Words()}, first_stage={"cranfield": run}, **given, mode="as_published")
    assert cells(published)["cranfield", FIRST_STAGE] == pytest.approx((1 + 0) / 2)
    assert any("number the queries" in note for note in published.notes)
    with pytest.raises(ValueError, match="2 of 3 are there, so that they cannot be matched"):
        reproduce("tirex", {}, first_stage={"cranfield": run[run["qid"] != "1"]}, **given)


def test_data_that_cannot_be_had_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("All download sources failed")

    monkeypatch.setattr(runs, "load_topics", fails)
    given = corpus("vaswani", "ax")
    result = reproduce("tirex", {}, **joined(given, DISKS[0]) | {"topics": given["topics"]})
    left = result.not_run.set_index("task").loc["disks45/nocr/trec-robust-2004"]
    assert left["why"] == ("Its topics could not be obtained here (RuntimeError: All download sources failed).")
    assert "vaswani" in set(result.cells["setting"])


def test_tira_s_client_is_asked_for_the_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    class Client:
        def get_run_output(self, approach: str, dataset: str) -> Path:
            asked.append((approach, dataset))
            (tmp_path / "run.txt").write_text("1 Q0 a 1 1.0 bm25\n")
            return tmp_path

    fake = type(importlib)("tira.rest_api_client")
    fake.Client = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(importlib.sys.modules, "tira", type(importlib)("tira"))  # type: ignore[attr-defined]
    monkeypatch.setitem(importlib.sys.modules, "tira.rest_api_client", fake)  # type: ignore[attr-defined]
    given = corpus("vaswani", "ax")
    result = reproduce("tirex", {}, **given | {"first_stage": {"vaswani": "tira"}})
    assert asked == [("ir-benchmarks/tira-ir-starter/BM25 (tira-ir-starter-pyterrier)", "vaswani-20230107-training")]
    assert cells(result)["vaswani", FIRST_STAGE] == 1
    reproduce("tirex", {}, **given | {"first_stage": {"vaswani": "tira:a/b/c"}})
    assert asked[1][0] == "a/b/c"


# --- any dataset ------------------------------------------------------------------------------------------------------


def test_any_pyterrier_dataset() -> None:
    demo = pt.get_dataset("rankdistillm:demo")
    by_name = reproduce("rankdistillm:demo", {"words": Words()}, first_stage=demo.get_results(), depth=20)
    by_object = reproduce(demo, {"words": Words()}, first_stage=demo.get_results(), depth=20)
    assert by_name.cells["value"].tolist() == by_object.cells["value"].tolist()
    assert by_name.cells["topics"].unique().tolist() == [32]
    assert set(by_name.comparison["status"]) == {"not published"}
    assert by_name.agrees is None


def test_any_ir_datasets_id() -> None:
    class Docs(BaseDocs):
        def docs_cls(self) -> type:
            return GenericDoc

        def docs_store(self) -> Any:
            return self

        def get_many_iter(self, ids: list[str]) -> Any:
            return (GenericDoc(docno, text) for docno, text in TEXT.itertuples(index=False) if docno in ids)

    class Queries(BaseQueries):
        def queries_cls(self) -> type:
            return GenericQuery

        def queries_iter(self) -> Any:
            return (GenericQuery(*row) for row in TOPICS.itertuples(index=False))

    class Qrels(BaseQrels):
        def qrels_iter(self) -> Any:
            return (TrecQrel(*row, "0") for row in QRELS.itertuples(index=False))

        def qrels_defs(self) -> dict[int, str]:
            return {}

    name = "rankdistillm-tests/reproduce"
    ir_datasets.registry.register(name, Dataset(Docs(), Queries(), Qrels()))
    for written in (name, f"irds:{name}"):
        result = reproduce(written, {"words": Words()}, first_stage=RUN)
        assert result.cells["value"].tolist()[-1] == 1
        assert result.provenance["runs"][0]["query fields"] == ["text"]


def test_the_paper_s_task_by_its_ir_datasets_id() -> None:
    result = reproduce("irds:msmarco-passage/trec-dl-2019/judged", {}, **GIVEN)
    assert result.name == "trec-dl-2019"


# --- real data --------------------------------------------------------------------------------------------------------


def trec_dl(shared: Path, year: int) -> dict[str, Any]:
    """Topics of 2020 are not among the data, but the first stage needs their numbers only."""
    qrels = shared / "data" / "trec-dl-runs" / f"trec-dl-{year}.qrels"
    judged = pt.io.read_qrels(str(qrels))["qid"].unique()
    return {"topics": pd.DataFrame({"qid": judged, "query": "?"}), "qrels": qrels}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("year", "run", "name", "value"),
    [
        (2019, "bm25-pyterrier", "bm25", 0.480),
        (2019, "colbertv2", "colbertv2", 0.732),
        (2020, "colbertv2", "colbertv2", 0.724),
    ],
)
def test_first_stages_of_the_paper_are_reproduced(shared: Path, year: int, run: str, name: str, value: float) -> None:
    file = shared / "data" / "trec-dl-runs" / f"{run}.trec-dl-{year}.run.gz"
    result = reproduce(f"trec-dl-{year}", {}, first_stage=file, **trec_dl(shared, year))
    assert statuses(result) == {(f"{name}/trec-dl-{year}", FIRST_STAGE): "reproduced"}
    assert round(cells(result)[f"{name}/trec-dl-{year}", FIRST_STAGE], 3) == value
    assert result.agrees is True


@pytest.mark.shared
@pytest.mark.parametrize(("year", "value"), [(2019, 0.512), (2020, 0.477)])
@pytest.mark.parametrize("name", [None, "bm25"])
def test_another_first_stage_is_not_the_paper_s(shared: Path, year: int, value: float, name: str | None) -> None:
    file = shared / "data" / "trec-dl-runs" / f"bm25-pyserini.trec-dl-{year}.run.gz"
    given = trec_dl(shared, year)
    result = reproduce(f"trec-dl-{year}", {"mine": file}, first_stage={name: file} if name else file, **given,
                       published={"mine": "webis/monoelectra-base"})  # fmt: skip
    assert set(statuses(result).values()) == {"not comparable"}
    assert {round(v, 3) for v in cells(result).values()} == {value}
    assert f"another first stage than the paper's ({value:.3f}" in result.comparison["reason"].iloc[0]
    assert result.agrees is False


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.TruncationWarning")
def test_a_checkpoint_over_the_pool_is_a_condensed_list(
    shared: Path, tmp_path: Path, checkpoint: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny checkpoint, by the command line: the demo's takes two minutes."""
    pool = shared / "data" / "trec-dl-2019-pool"
    first_stage = shared / "data" / "trec-dl-runs" / "bm25-pyterrier.trec-dl-2019.run.gz"
    command = [
        "reproduce", "trec-dl-2019", "--first-stage", str(first_stage), "--topics", str(pool / "queries.tsv"),
        "--qrels", str(pool / "qrels.txt"), "--text", str(pool / "passages.jsonl.gz"), "--condensed",
        "--system", f"tiny={checkpoint('lightning-ir-hub').folder}", "--depth", "100", "--measure", "RR@10",
        "--html", str(tmp_path / "report.html"), "--folder", str(tmp_path / "kept"),
    ]  # fmt: skip
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "bm25-pyterrier on trec-dl-2019: nDCG@10 0.480, the paper's bm25" in printed.err
    assert "condensed: 3582 of 4205 documents" in printed.out
    assert "tiny (condensed)" in printed.out
    assert "(condensed)" in (tmp_path / "report.html").read_text(encoding="utf-8")
    result = Reproduction.open(tmp_path / "kept")
    assert statuses(result)["bm25/trec-dl-2019", FIRST_STAGE] == "reproduced"
    assert statuses(result)["bm25/trec-dl-2019", "tiny"] == "not published"


@pytest.mark.shared
def test_vaswani_live(shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pisa = pytest.importorskip("pyterrier_pisa")
    folder = shared / "data" / "vaswani"
    passages = pd.read_json(folder / "passages.jsonl.gz", lines=True, dtype={"docno": str})
    index = pisa.PisaIndex(str(tmp_path / "index"), text_field="text")
    index.index(passages.to_dict("records"))
    capfd.readouterr()  # PISA's own
    result = reproduce(
        "tirex",
        {"words": Words()},
        first_stage={"vaswani": index.bm25(num_results=100)},
        topics=folder / "queries.tsv",
        qrels=folder / "qrels.txt",
        text=passages,
        mode="as_published",
    )
    first = cells(result)["vaswani", FIRST_STAGE]
    assert result.cells["topics"].iloc[0] == 93
    assert 0.4 < first < 0.55
    row = result.comparison.set_index("system").loc[FIRST_STAGE].iloc[0]
    assert row["paper"] == 0.447
    assert row["status"] == ("reproduced" if abs(first - 0.447) <= 0.0005 else "not comparable")


@pytest.mark.shared
def test_each_year_is_told_apart(shared: Path) -> None:
    """One of the files is the paper's BM25, the other is not."""
    folder = shared / "data" / "trec-dl-runs"
    first_stage = {
        "mine": {
            "trec-dl-2019": folder / "bm25-pyterrier.trec-dl-2019.run.gz",
            "trec-dl-2020": folder / "bm25-pyserini.trec-dl-2020.run.gz",
        },
        "colbertv2": str(folder / "colbertv2.{task}.run.gz"),
    }
    given = {year: trec_dl(shared, int(year[-4:])) for year in ("trec-dl-2019", "trec-dl-2020")}
    topics, qrels = ({year: frames[key] for year, frames in given.items()} for key in ("topics", "qrels"))
    result = reproduce("trec-dl", {}, first_stage=first_stage, topics=topics, qrels=qrels)
    assert statuses(result) == {
        ("bm25/trec-dl-2019", FIRST_STAGE): "reproduced",
        ("mine/trec-dl-2020", FIRST_STAGE): "not comparable",
        ("colbertv2/trec-dl-2019", FIRST_STAGE): "reproduced",
        ("colbertv2/trec-dl-2020", FIRST_STAGE): "reproduced",
        ("mine/mean", FIRST_STAGE): "not comparable",
        ("colbertv2/mean", FIRST_STAGE): "not published",
    }
    assert round(cells(result)["colbertv2/mean", FIRST_STAGE], 3) == 0.728


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    runs.write(RUN, tmp_path / "bm25.run")
    (tmp_path / "topics.tsv").write_text("1\twhy does bread rise\n2\twhy does it rain\n")
    (tmp_path / "qrels.txt").write_text("1 0 a 3\n1 0 b 1\n2 0 c 2\n")
    (tmp_path / "text.jsonl").write_text(TEXT.to_json(orient="records", lines=True))
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def test_command_line_s_exit_status(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--topics", files["topics"], "--qrels", files["qrels"]]
    command = ["reproduce", "trec-dl-2019", "--first-stage", f"bm25={files['bm25']}", *given]
    assert cli.main([*command, "--system", f"run={files['bm25']}", "--format", "latex"]) == 3
    assert r"\begin{tabular}" in capsys.readouterr().out
    assert cli.main([*command, "--mode", "corrected", "--depth", "0"]) == 1
    assert "depth must be from 1 to 100, got 0" in capsys.readouterr().err
    assert cli.main([*command, "--system", "nameless"]) == 1
    assert "--system must be NAME=MODEL" in capsys.readouterr().err
    assert cli.main([*command, "--first-stage", files["bm25"]]) == 1
    assert "must have names" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.TruncationWarning")
def test_command_line_with_a_model(
    files: dict[str, str], checkpoint: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "rankdistillm:demo", "--first-stage", files["bm25"]]
    for name in ("topics", "qrels", "text"):
        command += [f"--{name}", files[name]]
    assert (
        cli.main([*command, "--system", f"tiny={checkpoint('lightning-ir-hub').folder}", "--format", "markdown"]) == 3
    )
    assert "| tiny |" in capsys.readouterr().out
