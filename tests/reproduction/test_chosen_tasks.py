"""Some tasks of a table, and ``first_stage="bm25"`` as far as it goes without Java."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pyterrier_rankdistillm import cli, reproduce
from pyterrier_rankdistillm.reproduction import bm25, reproducing
from pyterrier_rankdistillm.reproduction.catalogue import ARTEFACTS, Table, Task, table, tasks
from pyterrier_rankdistillm.runs import java

TOPICS = pd.DataFrame({"qid": ["1", "2"], "query": ["why does bread rise", "why does it rain"]})
QRELS = pd.DataFrame([("1", "a", 3), ("1", "b", 1), ("2", "c", 2)], columns=["qid", "docno", "label"])
RUN = pd.DataFrame(
    [("1", "b", 3.0), ("1", "x", 2.0), ("1", "a", 1.0), ("2", "x", 2.0), ("2", "c", 1.0)],
    columns=["qid", "docno", "score"],
)
GIVEN: dict[str, Any] = {"topics": TOPICS, "qrels": QRELS, "first_stage": RUN}


def settings(result: Any) -> list[str]:
    return list(dict.fromkeys(result.cells["setting"]))


def reasons(result: Any) -> dict[str, tuple[str, str]]:
    rows = result.comparison[result.comparison["status"] != "not run"]
    return {row["setting"]: (row["status"], row["reason"]) for row in rows.to_dict("records")}


def test_tasks_and_corpora_are_chosen_and_counted_against_the_whole() -> None:
    one = reproduce("tirex", {}, tasks=["vaswani"], **GIVEN)
    assert settings(one) == ["vaswani"]
    assert one.not_run.empty
    some = reproduce("tirex", {}, tasks=["vaswani", "gov2/trec-tb-2005", "argsme/2020-04-01"], **GIVEN)
    assert settings(some)[:3] == ["argsme/2020-04-01", "gov2", "vaswani"]
    assert settings(some)[3:] == ["arithmetic mean (3 of 13 corpora)", "geometric mean (3 of 13 corpora)"]
    assert (
        "1 of 3 tasks"
        in reasons(reproduce("tirex", {}, tasks="gov2/trec-tb-2005", mode="as_published", **GIVEN))["gov2"][1]
    )
    year = reproduce("trec-dl", {}, tasks=["trec-dl-2020"], **GIVEN)
    assert settings(year) == ["first stage/trec-dl-2020"]  # and no mean of the two years


def test_other_tasks_go_on_in_the_same_folder(tmp_path: Path) -> None:
    reproduce("tirex", {}, tasks=["vaswani"], folder=tmp_path, **GIVEN)
    both = reproduce("tirex", {}, tasks=["vaswani", "cranfield"], folder=tmp_path, **GIVEN)
    assert settings(both)[:2] == ["cranfield", "vaswani"]


@pytest.mark.parametrize("chosen", [["vaswanni"], []])
def test_unknown_tasks_are_listed(chosen: list[str]) -> None:
    with pytest.raises(ValueError, match=r"tasks .*argsme/2020-04-01/touche-2020-task-1.*vaswani") as told:
        reproduce("tirex", {}, tasks=chosen, **GIVEN)
    assert not chosen or "got 'vaswanni'" in str(told.value)


def test_the_command_line_chooses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RUN.to_csv(tmp_path / "a.tsv", sep="\t")
    arguments = ["reproduce", "tirex", "--first-stage", "bm25", "--task", "vaswani", "--task", "nowhere"]
    assert cli.main(arguments) == 1
    assert "got 'nowhere'" in capsys.readouterr().err


def test_a_corpus_of_one_task_compares_in_both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    value = float(reproduce("tirex", {}, tasks=["vaswani"], **GIVEN).cells["value"].iloc[0])
    cell = replace(table("tirex").published("first stage", "vaswani")["paper"], value=value)
    small = Table("tirex", (replace(tasks()["vaswani"], topics=2),), (cell,), "corpus")
    monkeypatch.setattr(reproducing, "table", lambda _: small)
    for mode in ("corrected", "as_published"):
        result = reproduce("tirex", {}, mode=mode, **GIVEN)
        assert reasons(result)["vaswani"] == ("reproduced", ""), mode
        assert result.agrees
    # A topic without documents counts in one mode only.
    result = reproduce("tirex", {}, **GIVEN | {"first_stage": RUN[RUN["qid"] == "1"]})
    assert reasons(result)["vaswani"][0] == "not compared"


def test_cranfield_with_matching_numbers_names_the_artefact() -> None:
    published = reproduce("tirex", {}, tasks=["cranfield"], mode="as_published", **GIVEN)
    status, reason = reasons(published)["cranfield"]
    assert status == "not comparable"
    assert ARTEFACTS["cranfield"] in reason
    assert "0.343" in reason
    assert reasons(reproduce("tirex", {}, tasks=["cranfield"], **GIVEN))["cranfield"][0] == "not compared"


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(who: str) -> None:
        raise java.JavaError(f"{who}: there is no Java.")

    monkeypatch.setattr("pyterrier_rankdistillm.reproduction.systems.start_java", refuse)


@pytest.mark.usefixtures("no_java")
def test_java_is_asked_for_after_the_data_and_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(java.JavaError, match=r"^reproduce: there is no Java"):
        reproduce("rankdistillm:demo", {}, first_stage="bm25", indices=tmp_path / "i", folder=tmp_path / "f")
    assert not (tmp_path / "i").exists()
    with pytest.raises(ValueError, match="must not be empty"):
        reproduce("rankdistillm:demo", {}, first_stage="bm25", qrels=QRELS.head(0), indices=tmp_path / "i")


@pytest.mark.usefixtures("no_java")
def test_a_finished_folder_needs_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reproduce("rankdistillm:demo", {}, first_stage=RUN.assign(qid="1"), topics=TOPICS, qrels=QRELS).cells
    assert len(found)

    class StandIn(bm25.Bm25):
        def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
            return inp.merge(RUN.assign(rank=RUN.groupby("qid").cumcount()), on="qid")

    monkeypatch.setattr(reproducing, "bm25_of", lambda *a, **k: StandIn(bm25.bm25_of(*a, **k).index))
    monkeypatch.setattr("pyterrier_rankdistillm.reproduction.systems.start_java", lambda _: None)
    given: dict[str, Any] = {"topics": TOPICS, "qrels": QRELS, "first_stage": "bm25", "folder": tmp_path / "f"}
    once = reproduce("rankdistillm:demo", {}, indices=tmp_path / "i", **given)
    monkeypatch.undo()
    again = reproduce("rankdistillm:demo", {}, indices=tmp_path / "elsewhere", **given)
    assert again.cells["value"].tolist() == once.cells["value"].tolist()
    assert any("was not run again" in note for note in again.notes)


def test_what_bm25_stands_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must name an index, as bm25:FOLDER; there is no data\.properties"):
        reproduce("tirex", {}, first_stage=f"bm25:{tmp_path}", tasks=["vaswani"])
    with pytest.raises(
        ValueError, match=r"is an index of one corpus, and 13 are to be searched\. Choose one with tasks="
    ):
        reproduce("tirex", {}, first_stage=f"bm25:{tmp_path}")
    with pytest.raises(ValueError, match=r"indices is where first_stage='bm25' makes indexes, and no first stage"):
        reproduce("tirex", {}, indices=tmp_path, tasks=["vaswani"], **GIVEN)
    with pytest.raises(ValueError, match=r"first_stage='bm25' must have a dataset to index"):
        bm25.bm25_of("bm25", Task("mine", "mine"), None, tmp_path, verbose=False)
    with pytest.raises(FileNotFoundError, match="the file bm25 is not there"):
        reproduce("tirex", {}, first_stage="./bm25", tasks=["vaswani"])
