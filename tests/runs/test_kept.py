"""Kept work answers only for what made it: changed is refused before any scoring, unchanged is not made again."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import changes
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_rankdistillm import KeptWorkError, KeptWorkWarning, runs
from pyterrier_rankdistillm.identity import Walk, differences
from pyterrier_rankdistillm.runs import kinds
from pyterrier_rankdistillm.runs.kinds import walk

TOPICS = pd.DataFrame({"qid": ["1", "2", "3"], "query": ["one", "two", "three"]})
RUN = pd.DataFrame(
    [(qid, f"d{n}", -float(n), n, "x" * (n + 1)) for qid in TOPICS["qid"] for n in range(3)],
    columns=["qid", "docno", "score", "rank", "text"],
)

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in:DeprecationWarning")  # PyTerrier's add_ranks


class Counted(pt.Transformer):
    """Counts how often what it holds is asked; says that only that matters."""

    def __init__(self, inner: pt.Transformer) -> None:
        self.inner, self.asked = inner, 0

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        self.asked += 1
        return self.inner.transform(inp)

    def results_depend_on(self) -> Any:
        return self.inner


def make(teacher: pt.Transformer, output: Path, first_stage: Any = RUN, **options: Any) -> runs.MadeRun:
    options = {"depth": 3, "shard_size": 1, "verbose": False, **options}
    return runs.make_teacher_run(teacher, first_stage, TOPICS, output, **options)


@pytest.mark.parametrize("name", changes.CHANGES)
def test_what_was_changed_is_refused_and_what_was_not_goes_on(name: str, tmp_path: Path) -> None:
    change = changes.CHANGES[name]
    output = tmp_path / "a.run"
    made = make(change(1), output)
    unchanged = Counted(change(1))
    again = make(unchanged.inner, output)
    assert again == made
    assert again.kept is not None
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    changes.SCORED.clear()
    with pytest.raises(KeptWorkError, match=r"a.run exists and is of other work: teacher.*reuse=\['teacher'\]"):
        make(change(-1), output)
    assert changes.SCORED == []
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_identities_are_the_same_in_every_process() -> None:
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    script = Path(__file__).parent / "changes.py"
    told = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], capture_output=True, text=True, check=True, timeout=120,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout  # fmt: skip
    there = {name: digests for name, *digests in map(str.split, told.splitlines())}
    for name, change in changes.CHANGES.items():
        here = [walk().tree(change(sign))["digest"] for sign in (1, -1)]
        assert here == there[name], name
        assert here[0] != here[1], name


def test_a_changed_first_stage_is_refused(tmp_path: Path) -> None:
    def stage(sign: int) -> pt.Transformer:
        return pt.apply.generic(lambda topics: RUN[RUN["qid"].isin(topics["qid"])].assign(score=sign * RUN["score"]))

    teacher = changes.closure(1)
    make(teacher, tmp_path / "a.run", stage(1))
    make(teacher, tmp_path / "a.run", stage(1))
    with pytest.raises(KeptWorkError, match=r"first stage.fn.closure.sign: 1, now -1.*reuse=\['first stage'\]"):
        make(teacher, tmp_path / "a.run", stage(-1))
    with pytest.raises(KeptWorkError, match="first stage") as caught:
        make(teacher, tmp_path / "b.run", RUN) and make(teacher, tmp_path / "b.run", RUN.assign(text="y"))
    assert "reuse" not in str(caught.value)  # what was given is known for sure


def test_unfinished_work_is_refused_or_begun_anew(tmp_path: Path) -> None:
    class Stopping(pt.Transformer):
        def __init__(self, factor: float, at: int) -> None:
            self.factor, self._at, self._calls = factor, at, 0

        def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
            self._calls += 1
            if self._calls > self._at:
                raise KeyboardInterrupt
            return pt.model.add_ranks(inp.assign(score=self.factor * inp["score"]))

        def results_depend_on(self) -> Any:
            return {"factor": self.factor}

    output = tmp_path / "a.run"
    with pytest.raises(KeyboardInterrupt):
        make(Stopping(1.0, at=0), output)
    with pytest.raises(KeyboardInterrupt):
        make(Stopping(2.0, at=1), output)  # nothing of the first was finished
    with pytest.raises(
        KeptWorkError, match=r"a.run.shards holds unfinished work of another kind: teacher.factor: 2.0, "
    ):
        make(Stopping(1.0, at=9), output)
    made = make(Stopping(2.0, at=9), output)
    assert made.kept is not None
    assert made.kept.queries == 1


def test_reuse_takes_what_an_error_printed_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "a.run"
    made = make(changes.closure(1), output)
    with pytest.raises(ValueError, match=r"reuse must name parts .*teacher, first stage, got 'teachers'"):
        make(changes.closure(-1), output, reuse=["teachers"])
    with pytest.raises(ValueError, match="reuse must name parts"):
        make(changes.closure(-1), output, reuse=["depth"], depth=2)
    reused = make(changes.closure(-1), output, reuse="teacher")
    assert reused.read().equals(made.read())
    assert reused.kept is not None
    assert "teacher is not what made it (fn.closure.sign: 1, now -1); reused on request, 2" in reused.kept.notes[0]
    record = json.loads((tmp_path / "a.run.json").read_text())
    assert [one["part"] for one in record["made by"]["reused"]] == ["teacher"]
    make(changes.closure(1), output)  # both go on from then
    make(changes.closure(-1), output)
    with pytest.raises(KeptWorkError):
        make(changes.closure(2), output)


def test_what_the_work_itself_changed_does_not_count(tmp_path: Path) -> None:
    class Remembering(pt.Transformer):
        def __init__(self, factor: float) -> None:
            self.factor = factor
            self.seen: dict[str, float] = {}

        def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
            self.seen |= {text: self.factor * len(text) for text in inp["text"]}
            return pt.model.add_ranks(inp.assign(score=[self.seen[text] for text in inp["text"]]))

    output = tmp_path / "a.run"
    teacher = Remembering(2.0)
    made = make(teacher, output)
    assert make(teacher, output) == make(Remembering(2.0), output) == made
    warm = Remembering(2.0)
    warm.seen = {"other": 1.0}
    assert make(warm, output) == made
    with pytest.raises(KeptWorkError, match=r"teacher.factor: 2.0, now 3.0"):
        make(Remembering(3.0), output)


def test_a_memo_that_was_filled_before_goes_on(tmp_path: Path) -> None:
    make(changes.remembering(1), tmp_path / "a.run")
    filled = changes.remembering(1)
    filled.transform(RUN)
    make(filled, tmp_path / "a.run")


def test_what_cannot_be_known_is_named_or_keeps_work_from_being_reused(tmp_path: Path) -> None:
    class Asking(pt.Transformer):
        def __init__(self) -> None:
            self.client = socket.socket()
            self.client.close()

        def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
            return inp

    make(Asking(), tmp_path / "a.run")
    with pytest.warns(KeptWorkWarning, match=r"whatever becomes of teacher.client \(socket.socket\)") as warned:
        again = make(Asking(), tmp_path / "a.run")
    assert len(warned) == 1
    assert again.kept is not None
    assert again.kept.notes == ("what cannot be known of it: teacher.client (socket.socket)",)

    def endless() -> Any:
        score = 0.0
        while True:
            row = yield score
            score = float(len(row["text"]))

    asked = endless()
    next(asked)
    itself = pt.apply.doc_score(asked.send)
    make(itself, tmp_path / "b.run")
    with pytest.raises(KeptWorkError, match=r"teacher: what builtins.generator computes cannot be known"):
        make(itself, tmp_path / "b.run")
    with pytest.warns(KeptWorkWarning):
        make(itself, tmp_path / "b.run", reuse=["teacher"])


def test_a_rotated_key_goes_on_and_is_written_nowhere(tmp_path: Path) -> None:
    def teacher(api_key: str, sep_token: str = "[SEP]") -> pt.Transformer:
        return changes.Weighted({"api_key": api_key, "sep_token": sep_token, "last": 1})

    made = make(teacher("old-s3cret"), tmp_path / "a.run")
    assert make(teacher("new-s3cret"), tmp_path / "a.run") == made
    assert "s3cret" not in (tmp_path / "a.run.json").read_text()
    with pytest.raises(KeptWorkError, match="sep_token: is another"):
        make(teacher("old-s3cret", sep_token="|"), tmp_path / "a.run")


def test_values_are_shown_if_they_are_numbers_only(tmp_path: Path) -> None:
    make(changes.Weighted({"prompt": "hush", "last": 1}), tmp_path / "a.run")
    with pytest.raises(KeptWorkError) as caught:
        make(changes.Weighted({"prompt": "whisper", "last": 1.5}), tmp_path / "a.run")
    assert "prompt: is another" in str(caught.value)
    assert "last: 1, now 1.5" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("hush", "whisper"))


def test_a_record_that_does_not_say_what_made_it(tmp_path: Path) -> None:
    make(changes.closure(1), tmp_path / "a.run")
    record = json.loads((tmp_path / "a.run.json").read_text())
    (tmp_path / "a.run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "made by"}))
    with pytest.raises(KeptWorkError, match="its record: does not say what made it"):
        make(changes.closure(1), tmp_path / "a.run")


# --- what is known ----------------------------------------------------------------------------------------------------


def terrier_index(folder: Path, lexicon: str = "one", date: str = "Monday") -> Path:
    folder.mkdir()
    (folder / "data.properties").write_text(f"#{date}\nnum.Documents=2\nnum.Terms=3\n")
    (folder / "data.lexicon.fsomapfile").write_text(lexicon)
    (folder / "other.txt").write_text(date)
    return folder


def test_terrier_indexes_count_by_their_files(tmp_path: Path) -> None:
    one = terrier_index(tmp_path / "one")
    copied = terrier_index(tmp_path / "copied", date="Tuesday")
    other = terrier_index(tmp_path / "other", lexicon="two")

    def tree(place: Path) -> dict[str, Any]:
        return Walk().tree(kinds.terrier_index(str(place), walk()))

    assert differences(tree(one), tree(copied)) == []
    assert differences(tree(one), tree(one / "data.properties")) == []
    assert [found.path for found in differences(tree(one), tree(other))] == ["lexicon.fsomapfile"]
    held = [pt.terrier.TerrierIndex(str(place)) for place in (one, copied, other)]
    digests = [walk().tree(index)["digest"] for index in held]
    assert digests[0] == digests[1] != digests[2]


def test_pisa_indexes_count_by_their_files(tmp_path: Path) -> None:
    pisa = pytest.importorskip("pyterrier_pisa")
    texts = {"one": "cats sleep", "copied": "cats sleep", "other": "dogs bark"}
    retrievers = []
    for name, text in texts.items():
        index = pisa.PisaIndex(str(tmp_path / name), stemmer="none", text_field="text")
        if name == "copied":
            shutil.copytree(tmp_path / "one", tmp_path / "copied")
        else:
            index.index([{"docno": "a", "text": text}, {"docno": "b", "text": "rain"}])
        retrievers.append(pisa.PisaIndex(str(tmp_path / name), stemmer="none", text_field="text").bm25())
    one, copied, other = (walk().tree(retriever) for retriever in retrievers)
    assert one["digest"] == copied["digest"] != other["digest"]
    retrievers[0].search("cats")
    opened = walk().tree(retrievers[0])
    assert not opened.get("unknown")
    assert (
        differences(one, walk().tree(pisa.PisaIndex(str(tmp_path / "one"), stemmer="none", text_field="text").bm25()))
        == []
    )


def test_parquet_texts_count_by_content(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    loaders = []
    for name, text in (("one", "cat"), ("copied", "cat"), ("other", "dog")):
        pd.DataFrame({"docno": ["a"], "text": [text]}).to_parquet(tmp_path / f"{name}.parquet")
        loaders.append(runs.ParquetText(tmp_path / f"{name}.parquet"))
    one, copied, other = (walk().tree(loader)["digest"] for loader in loaders)
    assert one == copied != other


KNOWN: dict[str, Callable[[int], Any]] = {
    "run": lambda n: pt.Transformer.from_df(RUN.assign(score=n)),
    "cutoff": lambda n: pt.RankCutoff(n),
    "scaled": lambda n: pt.Transformer.identity() * n,
    "sum": lambda n: pt.Transformer.identity() + changes.closure(n),
    "union": lambda n: pt.Transformer.identity() | changes.closure(n),
    "features": lambda n: pt.Transformer.identity() ** changes.closure(n),
    "concatenation": lambda n: pt.Transformer.identity() ^ (pt.Transformer.identity() % n),
    "pipeline": lambda n: pt.Transformer.identity() >> changes.closure(n),
    "query": lambda n: pt.apply.query(lambda row: row["query"] * n),
    "by query": lambda n: pt.apply.by_query(lambda frame: frame.head(n)),
    "generic": lambda n: pt.apply.generic(lambda frame: frame.head(n)),
    "column": lambda n: pt.apply.text(lambda row: row["text"] * n),
    "features by function": lambda n: pt.apply.doc_features(lambda row: np.array([n])),  # noqa: ARG005
    "renamed": lambda n: pt.apply.rename({"text": f"text {n}"}),
    "passages": lambda n: pt.text.sliding(text_attr="text", length=n + 5, prepend_attr=None),
    "best passages": lambda n: pt.text.kmaxavg_passage(n),
    "demo": lambda n: [pt.get_dataset("rankdistillm:demo").text_loader(), n],
    "frame of texts": lambda n: runs.given.FrameText({"d": f"text {n}"}, "a frame"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_pyterrier_s_kinds_are_known(name: str) -> None:
    one, same, other = (walk().tree(KNOWN[name](n)) for n in (1, 1, 2))
    assert one["digest"] == same["digest"]
    assert differences(one, other) != []
    assert "unseen" not in one


def test_what_does_not_change_results_of_pyterrier_s_kinds() -> None:
    one = pt.apply.doc_score(changes._scored, label="a", verbose=False)
    other = pt.apply.doc_score(changes._scored, label="b", verbose=True)
    assert walk().tree(one)["digest"] == walk().tree(other)["digest"]


def test_arrays_and_frames_count_by_content() -> None:
    many = np.arange(10_000.0)
    changed = many.copy()
    changed[7_654] = 0
    for one, same, other in (
        (many, many.copy(), changed),
        (RUN, RUN.copy(), RUN.assign(text="x")),
        (RUN, RUN[list(RUN.columns[::-1])], RUN.iloc[::-1].reset_index(drop=True)),
        (RUN.astype({"qid": object}), RUN, RUN.astype({"qid": int})),
        (np.float32(1), np.float32(1), np.float64(1)),
        (RUN["qid"], RUN["qid"].copy(), RUN["docno"]),
    ):
        trees = [walk().tree(value)["digest"] for value in (one, same, other)]
        assert trees[0] == trees[1] != trees[2]
