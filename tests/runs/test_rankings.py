"""Runs by ranking: frames and files give the same rankings, and the mapped form is whole, current, or not there."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyterrier_rankdistillm import extras, runs
from pyterrier_rankdistillm.runs import Rankings, files, mapped, published, rankings
from pyterrier_rankdistillm.runs.kinds import walk
from pyterrier_rankdistillm.runs.rankings import JoinedRankings

TREC = "q2 Q0 a 2 1.5 t\nq2 Q0 b 1 2.5 t\nq1 Q0 a 1 0.25 t\nq3 Q0 c 1 9.0 t\nq3 Q0 d 3 8.0 t\nq3 Q0 a 2 8.5 t\n"
RUN = pd.DataFrame(
    {
        "qid": ["q2", "q2", "q1", "q3", "q3", "q3"],
        "query": ["two", "two", None, "three", "three", "three"],
        "docno": ["a", "b", "a", "c", "d", "a"],
        "score": [1.5, 2.5, 0.25, 9.0, 8.0, 8.5],
        "rank": [1, 0, 0, 0, 2, 1],
    }
)
Plain = list[tuple[str, "str | None", list[str], "list[float] | None"]]
WITHOUT_QUERIES: Plain = [
    ("q2", None, ["b", "a"], [2.5, 1.5]),
    ("q1", None, ["a"], [0.25]),
    ("q3", None, ["c", "a", "d"], [9.0, 8.5, 8.0]),
]
WITH_QUERIES: Plain = [
    (qid, {"q2": "two", "q3": "three"}.get(qid), docnos, scores) for qid, _, docnos, scores in WITHOUT_QUERIES
]


def plain(found: Rankings) -> Plain:
    return [
        (one.qid, one.query, one.docnos, None if one.scores is None else one.scores.tolist())
        for one in (found[i] for i in range(len(found)))
    ]


def put(folder: Path, content: str | bytes, name: str = "some.run") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read a few rows at a time."""
    monkeypatch.setattr(files, "_BLOCK", 40)
    monkeypatch.setattr(files, "_BATCH", 2)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to make a mapped form."""
    pytest.importorskip("pyarrow")
    made = []
    make: Callable[[mapped.MappedForm, Path], None] = rankings._make

    def count(form: mapped.MappedForm, run: Path) -> None:
        made.append(run)
        make(form, run)

    monkeypatch.setattr(rankings, "_make", count)
    return made


def test_a_frame_by_ranking() -> None:
    found = Rankings.from_frame(RUN)
    assert plain(found) == WITH_QUERIES
    assert (len(found), found.rows, found.has_scores, found.sizes.tolist()) == (3, 6, True, [2, 1, 3])
    assert list(found.qids) == ["q2", "q1", "q3"]
    assert found.qids[1:] == ["q1", "q3"]
    assert [found.docnos[row] for row in range(found.rows)] == ["b", "a", "a", "c", "a", "d"]
    assert repr(found) == "Rankings(3 queries, 6 rows)"
    assert found[-1].docnos == found[2].docnos == ["c", "a", "d"]
    assert [one.qid for one in found] == ["q2", "q1", "q3"]
    for outside in (3, -4):
        with pytest.raises(IndexError):
            found[outside]
    with pytest.raises(IndexError):
        found.docnos[6]
    scores = found[0].scores
    assert scores is not None
    scores[:] = 0
    assert plain(found) == WITH_QUERIES


def test_frames_need_neither_order_nor_index_nor_both_of_rank_and_score() -> None:
    shuffled = RUN.drop(columns="query").sample(frac=1, random_state=1)
    assert sorted(plain(Rankings.from_frame(shuffled))) == sorted(WITHOUT_QUERIES)
    assert plain(Rankings.from_frame(RUN.drop(columns=["query", "rank"]))) == WITHOUT_QUERIES
    ranked = Rankings.from_frame(RUN.drop(columns=["query", "score"]))
    assert plain(ranked) == [(qid, query, docnos, None) for qid, query, docnos, _ in WITHOUT_QUERIES]
    assert not ranked.has_scores
    # Ranks are the order, whatever the scores say; equal scores go by docno, descending.
    assert Rankings.from_frame(RUN.assign(score=RUN["rank"])).docnos[:] == ["b", "a", "a", "c", "a", "d"]
    tied = RUN.drop(columns="rank").assign(score=1)
    assert Rankings.from_frame(tied).docnos[:] == ["b", "a", "a", "d", "c", "a"]


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (RUN.drop(columns=["rank", "score"]), "has the columns qid, docno, and rank or score, got qid, query, docno"),
        (RUN.drop(columns="docno"), "has the columns qid, docno, and rank or score"),
        (RUN.assign(score="1"), "score must hold numbers, got dtype"),
        (RUN.assign(rank=0.5), "rank must hold whole numbers, got dtype float64"),
        (RUN.assign(score=[1, 2, np.nan, 4, 5, 6]), "row 2 .* score must be a finite number, got nan"),
        (RUN.assign(docno=["a", "b", None, "c", "d", "e"]), "row 2 .* docno is missing"),
        (RUN.assign(docno="a"), "row 1 .* docno 'a' occurs twice in the ranking of qid 'q2'. .*deduplicate"),
        (RUN.drop(columns="score").assign(docno="a"), "row 1 .* docno 'a' occurs twice"),
        (RUN.assign(query=["two", "2", None, "three", "three", "three"]), "several for qid 'q2'"),
        (RUN.assign(query=["two", None, None, "three", "three", "three"]), "several for qid 'q2'"),
        (RUN.iloc[:0], "no rows"),
    ],
)
def test_frames_that_are_no_runs_are_refused(run: pd.DataFrame, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Rankings.from_frame(run)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("suffix", [".run", ".run.gz", ".tsv", ".jsonl", ".jsonl.gz", ".parquet", ".parquet.gz"])
def test_a_file_is_as_the_frame(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    runs.write(RUN, tmp_path / f"a{suffix}")
    found = Rankings.from_file(tmp_path / f"a{suffix}")
    expected = WITHOUT_QUERIES if suffix.removesuffix(".gz") in (".run", ".tsv") else WITH_QUERIES
    assert plain(found) == expected
    assert (len(found), found.rows, found.has_scores, found.sizes.tolist()) == (3, 6, True, [2, 1, 3])
    assert list(found.qids) == ["q2", "q1", "q3"]
    assert [found.docnos[row] for row in range(found.rows)] == ["b", "a", "a", "c", "a", "d"]
    assert names(tmp_path) == [f"a{suffix}", f"a{suffix}.rankings"]
    assert found[0].scores is not None
    assert found[0].scores.dtype == np.float64


def test_many_rankings_over_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(files, "_BLOCK", 1000)
    rng = np.random.default_rng(0)
    depths = rng.integers(1, 90, size=60)
    run = pd.DataFrame({"qid": np.repeat([f"q{i}" for i in range(60)], depths)})
    run = run.assign(docno=[f"d{i}" for i in rng.permutation(len(run))], score=rng.normal(size=len(run)))
    runs.write(run, tmp_path / "a.run")
    shuffled = [line for _, part in run.groupby("qid", sort=False) for line in part.sample(frac=1).to_numpy()]
    put(tmp_path, "".join(f"{q} Q0 {d} 0 {s!r} t\n" for q, d, s in shuffled), "b.run")
    for name in ("a.run", "b.run"):
        found = Rankings.from_file(tmp_path / name)
        assert plain(found) == plain(Rankings.from_frame(run))
        assert found.docnos[:] == Rankings.from_frame(run).docnos[:]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (TREC + "q2 Q0 z 3 1 t\n", "line 7: qid 'q2' comes again after other queries. Sort the file by qid"),
        ("q1 Q0 a 1 2 t\nq2 Q0 a 1 2 t\nq1 Q0 b 2 1 t\n", "line 3: qid 'q1' comes again"),
        (TREC + "q4 Q0 z 3 nan t\n", "line 7: score must be a finite number, got 'nan'"),
        (TREC + "\nq4 Q0 z 3 1\n", "line 8: 5 fields, a TREC run has 6"),
        (TREC + "q3 Q0 c 9 1 t\n", "line 7: docno 'c' occurs twice in the ranking of qid 'q3'"),
        (TREC.encode() + b"q4 Q0 \xff 1 1 t\n", "line 7: not UTF-8"),
        (gzip.compress(TREC.encode(), mtime=0)[:-9], "line 7: the gz stream is broken or ends too early"),
        ("\n\n", "has no rows"),
        ('{"qid": "1", "docno": "a", "score": 1}\n' * 2, "line 2: docno 'a' occurs twice"),
        ('{"qid": "1", "docno": "a", "score": 1}\n{"qid": "2", "score": 1}\n', "line 2: docno is missing"),
        (
            "".join(json.dumps({"qid": q, "docno": "a", "score": 1} | more) + "\n" for q, more in [
                ("1", {"rank": 1}), ("2", {})]),
            "line 2: rank must be in all lines or in none, it is missing",
        ),
    ],
)  # fmt: skip
def test_broken_files_leave_nothing_behind(tmp_path: Path, content: str | bytes, what: str) -> None:
    pytest.importorskip("pyarrow")
    file = put(tmp_path, content)
    for folder in (None, tmp_path):
        with pytest.raises(runs.RunFileError) as caught:
            Rankings.from_file(file, folder=folder)
        assert what in str(caught.value)
        assert str(caught.value).startswith(str(file))
        assert names(tmp_path) == ["some.run"]


def test_a_query_with_several_texts_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    runs.write(RUN.assign(query=["two", "2", None, "three", "three", "three"]), tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="several for qid 'q2'"):
        Rankings.from_file(tmp_path / "a.jsonl")
    assert names(tmp_path) == ["a.jsonl"]


def test_the_mapped_form_is_made_once_and_again_when_the_file_changes(tmp_path: Path, made: list[Path]) -> None:
    file = put(tmp_path, TREC)
    before = file.stat()
    first = Rankings.from_file(file)
    assert plain(Rankings.from_file(str(file))) == WITHOUT_QUERIES
    assert made == [file]
    # Of equal size, and with the old time: the digest tells.
    put(tmp_path, TREC.replace("q1", "q9"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(Rankings.from_file(file).qids) == ["q2", "q9", "q3"]
    assert made == [file] * 2
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    Rankings.from_file(file)
    put(tmp_path, TREC.replace("q1", "q9") + "q4 Q0 z 1 1 t\n")
    assert len(Rankings.from_file(file)) == 4
    assert made == [file] * 4
    assert plain(first) == WITHOUT_QUERIES  # what is open stays as it was


def test_a_file_that_breaks_leaves_the_old_form_unused(tmp_path: Path, made: list[Path]) -> None:
    file = put(tmp_path, TREC)
    Rankings.from_file(file)
    put(tmp_path, TREC + "q4\n")
    for _ in range(2):
        with pytest.raises(runs.RunFileError, match="line 7"):
            Rankings.from_file(file)
    assert made == [file] * 3


def test_the_form_can_lie_elsewhere(tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        put(tmp_path / name, TREC.replace("q1", name))
    for _ in range(2):
        for name in ("x", "y"):
            found = Rankings.from_file(tmp_path / name / "some.run", folder=tmp_path / "forms")
            assert list(found.qids) == ["q2", name, "q3"]
    assert len(made) == len(names(tmp_path / "forms")) == 2
    assert names(tmp_path / "x") == ["some.run"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"The folder of rankings .* must be writable, got '.*x'"):
        Rankings.from_file(tmp_path / "x" / "some.run")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_is_mapped_is_not_replaced_on_windows(
    tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    monkeypatch.setattr(mapped, "_REPLACES_MAPPED", False)
    replaced: list[Path] = []
    replace, unlink = Path.replace, Path.unlink

    def careful(self: Path, target: Path) -> Path:
        replaced.extend([target] if target.exists() else [])
        return replace(self, target)

    def refused(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".rankings":
            raise PermissionError(13, "it is mapped")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "replace", careful)
    monkeypatch.setattr(Path, "unlink", refused)
    folder = tmp_path / "forms" if elsewhere else None
    file = put(tmp_path, TREC)
    first = Rankings.from_file(file, folder=folder)
    for other in ("q7", "q8"):
        put(tmp_path, TREC.replace("q1", other))
        for _ in range(2):
            assert list(Rankings.from_file(file, folder=folder).qids) == ["q2", other, "q3"]
    assert plain(first) == WITHOUT_QUERIES
    assert (made, replaced) == ([file] * 3, [])
    monkeypatch.setattr(Path, "unlink", unlink)
    put(tmp_path, TREC)
    Rankings.from_file(file, folder=folder)  # the older ones can go now
    assert len(names(folder or tmp_path)) == (1 if elsewhere else 2)


def test_another_process_may_have_made_and_mapped_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    file = put(tmp_path, TREC)
    replace = Path.replace

    def refused(self: Path, target: Path) -> None:
        replace(self, target)
        raise PermissionError(13, "it is mapped")

    monkeypatch.setattr(Path, "replace", refused)
    assert plain(Rankings.from_file(file)) == WITHOUT_QUERIES


@pytest.mark.parametrize("theirs", [b"", b"something else", None])
def test_what_is_not_ours_is_not_written_over(tmp_path: Path, theirs: bytes | None) -> None:
    pa = pytest.importorskip("pyarrow")
    file, taken = put(tmp_path, TREC), tmp_path / "some.run.rankings"
    if theirs is None:
        table = pa.table({"qid": ["q1"]})
        with pa.ipc.new_file(str(taken), table.schema) as sink:
            sink.write_table(table)
    else:
        taken.write_bytes(theirs)
    held = taken.read_bytes()
    with pytest.raises(ValueError, match=r"some\.run\.rankings must be free"):
        Rankings.from_file(file)
    assert taken.read_bytes() == held


def test_pickles_carry_the_path(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = put(tmp_path, "".join(f"{q} Q0 d{d} {d} {-d} t\n" for q in range(100) for d in range(1, 101)))
    found = Rankings.from_file(file)
    data = pickle.dumps(found)
    assert len(data) < 1000
    assert plain(pickle.loads(data))[::33] == plain(found)[::33]
    (tmp_path / "pickle").write_bytes(data)
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'pickle')!r}, 'rb'))[99].docnos[-1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("d100\n", "")
    put(tmp_path, TREC)
    Rankings.from_file(file)
    with pytest.raises(FileNotFoundError, match="gone, or belongs to another run by now"):
        pickle.loads(data)
    (tmp_path / "some.run.rankings").unlink()
    with pytest.raises(FileNotFoundError, match="gone, or belongs to another run by now"):
        pickle.loads(data)
    assert plain(pickle.loads(pickle.dumps(Rankings.from_frame(RUN)))) == WITH_QUERIES


def test_documents_stay_on_disk(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    file = put(tmp_path, "".join(f"{q} Q0 d{d} {d} {-d} t\n" for q in range(200) for d in range(1, 101)))
    Rankings.from_file(file)
    assert (tmp_path / "some.run.rankings").stat().st_size > 200_000
    before = pa.total_allocated_bytes()
    found = Rankings.from_file(file)
    assert sum(len(one.docnos) for one in found) == found.rows == 20_000
    assert pa.total_allocated_bytes() - before < 20_000


def test_a_published_run_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    place = published._place("rankzephyr", published.NAMES["rankzephyr"][1])
    place.parent.mkdir(parents=True)
    place.write_text(TREC)
    monkeypatch.setattr(published, "download", lambda _urls, target, **_: target)  # it is there: no checksum
    assert plain(Rankings.from_file("rankdistillm:rankzephyr")) == WITHOUT_QUERIES
    assert names(place.parent) == ["rank-distillm-rankzephyr.run", "rank-distillm-rankzephyr.run.rankings"]
    with pytest.raises(KeyError, match="rankzephyr, set-encoder, monoelectra, colbert"):
        Rankings.from_file("rankdistillm:x")


def test_files_need_pyarrow_and_frames_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-rankdistillm\[parquet\]'"):
        Rankings.from_file(put(tmp_path, TREC))
    assert names(tmp_path) == ["some.run"]
    assert plain(Rankings.from_frame(RUN)) == WITH_QUERIES


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(FileNotFoundError, match=r"absent\.run"):
        Rankings.from_file(tmp_path / "absent.run")


def test_several_runs_one_after_another(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    ranks = pd.DataFrame({"qid": "q1", "docno": ["b", "a"], "rank": [0, 1]})
    parts = [Rankings.from_frame(RUN), Rankings.from_file(put(tmp_path, TREC)), Rankings.from_frame(ranks)]
    found = JoinedRankings(parts)
    expected = [*WITH_QUERIES, *WITHOUT_QUERIES, ("q1", None, ["b", "a"], None)]
    assert plain(found) == plain(pickle.loads(pickle.dumps(found))) == expected
    assert list(found.qids) == found.qids[:] == ["q2", "q1", "q3", "q2", "q1", "q3", "q1"]
    assert (
        [found.docnos[row] for row in range(found.rows)] == found.docnos[:] == [d for one in expected for d in one[2]]
    )
    assert found.docnos[4:8] == found.docnos[:][4:8]
    assert found.sizes.tolist() == [2, 1, 3, 2, 1, 3, 2]
    assert found[-1].docnos == ["b", "a"]
    assert (found.has_scores, JoinedRankings(parts[:2]).has_scores) == (False, True)
    assert repr(found) == "JoinedRankings(3 runs, 7 rankings, 14 rows)"
    with pytest.raises(IndexError):
        found[7]
    odd = Rankings.from_frame(RUN.assign(score=-RUN["score"]))
    assert JoinedRankings([odd, parts[0], odd]).contradictions() == ["q2", "q3", "q2", "q3"]


def test_what_several_runs_are_is_all_of_them_in_their_order() -> None:
    some, others = Rankings.from_frame(RUN), Rankings.from_frame(RUN.drop(columns="score"))
    joined = [[some, others], [others, some], [some, some], [some]]
    digests = [walk().tree(JoinedRankings(parts)) for parts in joined] + [walk().tree(some)]
    assert len({str(digest) for digest in digests}) == 5
    assert str(walk().tree(JoinedRankings([some, others]))) == str(digests[0])
