"""Runs on disk: what is written is read back, what is malformed is refused with file and line."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pandas.testing import assert_frame_equal

from pyterrier_rankdistillm import extras, runs
from pyterrier_rankdistillm.runs import files

TREC = "1 Q0 a 1 2.5 t\n1 Q0 b 2 1.5 t\n2 Q0 a 1 0.1 t\n"
RUN = pd.DataFrame(
    {"qid": ["1", "1", "2"], "docno": ["a", "b", "a"], "score": [2.5, 1.5, 0.1], "rank": [0, 1, 0]}
)  # fmt: skip
TEXT_SUFFIXES = [".run", ".run.gz", ".tsv", ".txt", ".jsonl", ".jsonl.gz", ".ndjson"]
SUFFIXES = [*TEXT_SUFFIXES, ".parquet", ".parquet.gz"]


def needs_arrow(suffix: str) -> None:
    if ".parquet" in suffix:
        pytest.importorskip("pyarrow")


def put(folder: Path, content: str | bytes, name: str = "some.run") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    needs_arrow(suffix)
    file = tmp_path / f"a{suffix}"
    runs.write(RUN, file)
    assert_frame_equal(runs.read(file), RUN)
    runs.write(runs.read(file), tmp_path / f"b{suffix}")
    assert (tmp_path / f"b{suffix}").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_scores_are_kept_to_the_last_bit(tmp_path: Path, suffix: str) -> None:
    needs_arrow(suffix)
    scores = np.random.default_rng(0).normal(size=500).tolist()
    scores += [5e-324, 1.7976931348623157e308, -0.1, 1 / 3, float(np.float32(0.1))]
    run = pd.DataFrame({"qid": "q", "docno": [f"d{i}" for i in range(len(scores))], "score": sorted(scores)[::-1]})
    runs.write(run, tmp_path / f"a{suffix}")
    assert runs.read(tmp_path / f"a{suffix}")["score"].tolist() == sorted(scores)[::-1]


def test_trec_files_hold_six_fields_with_ranks_from_one(tmp_path: Path) -> None:
    runs.write(RUN.assign(query="x"), tmp_path / "a.run", tag="t")
    assert (tmp_path / "a.run").read_text() == TREC
    runs.write(RUN, tmp_path / "a.tsv", tag="t")
    assert (tmp_path / "a.tsv").read_text() == TREC.replace(" ", "\t")


def test_other_formats_keep_all_columns(tmp_path: Path) -> None:
    run = RUN.assign(query=["é", "é", None], grade=[1, 2, 3], gap=[1.5, np.nan, 2.5])
    runs.write(run, tmp_path / "a.jsonl")
    first = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first) == {
        "qid": "1",
        "docno": "a",
        "score": 2.5,
        "rank": 1,
        "query": "é",
        "grade": 1,
        "gap": 1.5,
    }
    back = runs.read(tmp_path / "a.jsonl")
    assert list(back.columns) == ["qid", "docno", "score", "rank", "query", "grade", "gap"]
    assert back["grade"].tolist() == [1, 2, 3]
    assert back["query"].tolist()[:2] == ["é", "é"]
    assert back.isna().sum().to_dict() == dict.fromkeys(back.columns, 0) | {"query": 1, "gap": 1}


def test_pyterrier_reads_what_is_written(tmp_path: Path) -> None:
    runs.write(RUN, tmp_path / "a.run.gz")
    theirs = pt.io.read_results(str(tmp_path / "a.run.gz"))
    assert theirs[["qid", "docno", "score"]].to_numpy().tolist() == RUN[["qid", "docno", "score"]].to_numpy().tolist()


@pytest.mark.parametrize(
    "content",
    [
        TREC.replace(" ", "\t"),
        TREC.replace(" ", "  \t "),
        TREC.replace("\n", "\r\n"),
        TREC.replace("\n", "\n\n \n"),
        TREC.replace("\n", " \n"),
        TREC.replace(" Q0 b", "  Q0\tb"),
        TREC.rstrip("\n"),
        "\ufeff" + TREC,
        TREC.replace(" 0.1 ", " 1e-1 "),
        TREC.replace(" 1 2.5", " 0 2.5").replace(" 2 1.5", " 1 1.5"),  # ranks from 0
        gzip.compress(TREC.encode(), mtime=0),
        jsonl(*({"query_id": q, "docid": d, "score": s} for q, d, s in RUN[["qid", "docno", "score"]].to_numpy())),
    ],
)
def test_variants_that_are_read_alike(tmp_path: Path, content: str | bytes) -> None:
    assert_frame_equal(runs.read(put(tmp_path, content)), RUN)


def test_words_that_parsers_take_for_missing_are_ids(tmp_path: Path) -> None:
    run = runs.read(put(tmp_path, 'NA Q0 null 1 2 t\nNA Q0 nan 2 1 t\nNA Q0 a"b 3 0 t\n007 Q0 1e5 1 1 t\n'))
    assert run["qid"].tolist() == ["NA", "NA", "NA", "007"]
    assert run["docno"].tolist() == ["null", "nan", 'a"b', "1e5"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("1 Q0 a 1 2 t\n1 Q0 b 2 1\n", "line 2: 5 fields, a TREC run has 6"),
        ("1 Q0 a 1 2 t\n\n1 Q0 b 2 1 t u\n", "line 3: 7 fields, a TREC run has 6"),
        ("1 Q0 a 1 2 t u v w\n", "line 1: 9 fields, a TREC run has 6"),
        ("1 Q0 a 1 2 t\n1 Q0 b 2 1 \n", "line 2: 5 fields, a TREC run has 6"),
        ("1\tQ0\ta\t1\t2\tt\n1\tQ0\tb c\t2\t1\tt\n", "line 2: 7 fields, a TREC run has 6"),
        ("1\tQ0\ta\t1\t2\tt\n1\tQ0\tb\t2\t1\tt u\n", "line 2: 7 fields, a TREC run has 6"),
        ("1 Q0 a one 2 t\n", "line 1: rank must be a whole number, got 'one'"),
        ("1 Q0 a 1.5 2 t\n", "line 1: rank must be a whole number, got '1.5'"),
        ("1 Q0 a 1 2 t\n1 Q0 b 2 x1 t\n", "line 2: score must be a finite number, got 'x1'"),
        ("1 Q0 a 1 nan t\n", "line 1: score must be a finite number, got 'nan'"),
        ("1 Q0 a 1 inf t\n", "line 1: score must be a finite number, got inf"),
        ("1 Q0 a 1 1_0 t\n", "line 1: score must be a finite number, got '1_0'"),
        ("1 Q0 a 1 1e999 t\n", "line 1"),
        ("1 Q0 a 1 2 t\n\n1 Q0 a 2 1 t\n", "line 3: docno 'a' occurs twice in the ranking of qid '1'"),
        (b"1 Q0 a 1 2 t\n1 Q0 \xff 2 1 t\n", "line 2: not UTF-8"),
        (gzip.compress(TREC.encode(), mtime=0)[:-9], "line 4: the gz stream is broken or ends too early"),
        (gzip.compress(TREC.encode(), mtime=0)[:12], "line 1: the gz stream is broken or ends too early"),
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        (jsonl({"qid": "1", "docno": "a", "score": 1}, {"qid": "1", "score": 1}), "line 2: docno is missing"),
        (jsonl({"qid": "1", "score": 1}), "line 1: docno is missing"),
        (jsonl({"qid": "1", "docno": "a", "score": "1"}), "line 1: score must be a finite number, got '1'"),
        (jsonl({"qid": "1", "docno": "a", "score": True}), "line 1: score must be a finite number, got True"),
        ('{"qid": "1", "docno": "a", "score": NaN}\n', "line 1: score must be a finite number, got nan"),
        (jsonl({"qid": 1.5, "docno": "a", "score": 1}), "line 1: qid must be a string or a whole number, got 1.5"),
        (jsonl({"qid": "1", "docno": "a", "score": 1, "rank": 1.5}), "line 1: rank must be a whole number, got 1.5"),
        (jsonl({"qid": "1", "docno": "a", "score": 1}) + "{,}\n", "line 2: not valid JSON"),
        (jsonl({"qid": "1", "docno": "a", "score": 1}) + "[1]\n", "line 2: a line must hold a JSON object, got list"),
        (jsonl({"qid": "1", "docno": "", "score": 1}), "line 1: docno is missing"),
        (
            jsonl(*[{"qid": "1", "docno": "a", "score": 1}] * 2),
            "line 2: docno 'a' occurs twice in the ranking of qid '1'",
        ),
        (b'{"qid": "1", "docno": "a", "score": 1}\n{"qid": "\xff"}\n', "line 2: not UTF-8"),
    ],
)
@pytest.mark.parametrize("block", [20, 8 << 20])
def test_malformed_files_are_refused_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, what: str, block: int
) -> None:
    monkeypatch.setattr(files, "_BLOCK", block)
    file = put(tmp_path, content)
    for read in (runs.read, lambda file: list(runs.read_parts(file))):
        with pytest.raises(runs.RunFileError) as caught:
            read(file)
        assert str(caught.value).startswith(str(file))
        assert what in str(caught.value)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_pieces_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(files, "_BLOCK", rows * 100)
    text = "".join(f"{q} Q0 d{d} {d} {1 / d!r} t\n" for q in range(7) for d in range(1, 6))
    whole = runs.read(io.BytesIO(text.encode()))
    assert len(whole) == 35
    for suffix in TEXT_SUFFIXES:
        runs.write(whole, tmp_path / f"a{suffix}")
        assert_frame_equal(runs.read(tmp_path / f"a{suffix}"), whole)
    with pytest.raises(runs.RunFileError, match=r"line 36: 5 fields"):
        runs.read(io.BytesIO(text.encode() + b"8 Q0 a 1 1\n"))
    with pytest.raises(runs.RunFileError, match=r"line 36: docno 'd1' occurs twice in the ranking of qid '0'"):
        runs.read(io.BytesIO(text.encode() + b"0 Q0 d1 9 0 t\n"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_parts_are_whole_rankings_and_joined_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, rows: int
) -> None:
    needs_arrow(suffix)
    monkeypatch.setattr(files, "_BLOCK", rows * 20)
    monkeypatch.setattr(files, "_BATCH", rows)
    depths = [5, 1, 7, 2, 4]
    run = pd.DataFrame({"qid": np.repeat(list("edcba"), depths), "docno": [f"d{i}" for i in range(19)]})
    runs.write(run.assign(score=np.random.default_rng(0).normal(size=19)), tmp_path / f"a{suffix}")
    parts = list(runs.read_parts(tmp_path / f"a{suffix}"))
    assert [qid for part in parts for qid in part["qid"].unique()] == list("edcba")
    assert len(parts) > 1 or rows > 3
    assert_frame_equal(pd.concat(parts, ignore_index=True), runs.read(tmp_path / f"a{suffix}"))


def test_parts_come_before_the_file_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK", len("1 Q0 a 1 2.5 t\n"))
    parts = runs.read_parts(io.BytesIO(TREC.encode() * 2))
    assert_frame_equal(next(parts), RUN.iloc[:2])
    assert next(parts)["qid"].tolist() == ["2"]
    with pytest.raises(runs.RunFileError, match="the stream, line 4: qid '1' comes again after other queries"):
        next(parts)


def test_parts_need_the_rows_of_a_query_together() -> None:
    apart = "1 Q0 a 1 1 t\n\n2 Q0 a 1 1 t\n1 Q0 b 2 0 t\n"
    assert runs.read(io.BytesIO(apart.encode()))["rank"].tolist() == [0, 0, 1]
    with pytest.raises(runs.RunFileError, match="line 4: qid '1' comes again"):
        list(runs.read_parts(io.BytesIO(apart.encode())))


def test_parts_that_are_not_read_to_the_end_leave_streams_open() -> None:
    for content in (TREC, jsonl(*RUN.to_dict("records"))):
        stream = io.BytesIO(content.encode())
        parts = runs.read_parts(stream)
        next(parts)
        parts.close()  # type: ignore[attr-defined]
        assert not stream.closed


def test_streams_are_read_from_where_they_stand_and_left_open(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.data = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:
            return self.data.readinto(buffer)

    ahead = io.BytesIO(b"other\n" + TREC.encode())
    ahead.readline()
    for stream in (
        io.BytesIO(TREC.encode()),
        io.BytesIO(gzip.compress(TREC.encode(), mtime=0)),
        io.StringIO(TREC),
        Pipe(TREC.encode()),
        Pipe(gzip.compress(TREC.encode(), mtime=0)),
        ahead,
    ):
        assert_frame_equal(runs.read(stream), RUN)
        assert not stream.closed
    with put(tmp_path, TREC).open(encoding="utf-8") as text:
        assert_frame_equal(runs.read(text), RUN)
    with pytest.raises(runs.RunFileError, match="line 2: 2 fields"):
        runs.read(Pipe(b"1 Q0 a 1 1 t\n1 a\n"))


def test_streams_are_written_and_left_open() -> None:
    text, data = io.StringIO(), io.BytesIO()
    runs.write(RUN, text, tag="t")
    runs.write(RUN, data, format="jsonl")
    assert text.getvalue() == TREC
    data.seek(0)
    assert_frame_equal(runs.read(data), RUN)


def test_ranks_follow_the_files_ranks_else_the_scores(tmp_path: Path) -> None:
    file = put(tmp_path, "1 Q0 a 30 1 t\n2 Q0 x 5 1 t\n1 Q0 b 10 1 t\n1 Q0 c 20 3 t\n")
    assert runs.read(file)["rank"].tolist() == [2, 0, 0, 1]
    ties = [{"qid": "1", "docno": d, "score": s} for d, s in (("a", 1), ("c", 1), ("b", 1), ("d", 2))]
    assert runs.read(put(tmp_path, jsonl(*ties)))["rank"].tolist() == [3, 1, 2, 0]


def test_duplicates_can_be_dropped(tmp_path: Path) -> None:
    file = put(tmp_path, "1 Q0 a 2 1 t\n1 Q0 a 1 3 t\n1 Q0 b 3 0 t\n")
    assert runs.read(file, duplicates="drop").to_numpy().tolist() == [["1", "a", 3.0, 0], ["1", "b", 0.0, 1]]
    with pytest.raises(ValueError, match="duplicates must be 'error' or 'drop', got 'no'"):
        runs.read(file, duplicates="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (RUN.drop(columns="score"), "got no score"),
        (RUN.assign(score=["1", "2", "3"]), "score must hold numbers"),
        (RUN.assign(score=[1.0, np.nan, 2.0]), "row 1 .* score must be a finite number, got nan"),
        (RUN.assign(docno=["a", None, "b"]), "row 1 .* docno is missing"),
        (RUN.assign(qid=["1", "", "2"]), "row 1 .* qid is missing"),
        (RUN.assign(qid="1"), "row 2 .* docno 'a' occurs twice in the ranking of qid '1'"),
        (RUN.assign(docno=["a", "b c", "a"]), "'b c' has white space"),
        (RUN.iloc[:0], "no rows"),
    ],
)
def test_bad_frames_leave_the_old_file_alone(tmp_path: Path, run: pd.DataFrame, what: str) -> None:
    file = put(tmp_path, "old")
    with pytest.raises(ValueError, match=what):
        runs.write(run, file)
    assert [path.name for path in tmp_path.iterdir()] == ["some.run"]
    assert file.read_text() == "old"


def test_white_space_fits_other_formats(tmp_path: Path) -> None:
    runs.write(RUN.assign(docno=["a b", "b", "a"]), tmp_path / "a.jsonl")
    assert runs.read(tmp_path / "a.jsonl")["docno"].tolist() == ["a b", "b", "a"]


def test_bad_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end with one of .run, .* got 'a.csv'"):
        runs.write(RUN, tmp_path / "a.csv")
    with pytest.raises(ValueError, match="format must be None or one of trec, parquet, jsonl, got 'csv'"):
        runs.write(RUN, tmp_path / "a.run", format="csv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tag must be a word without white space, got 'a b'"):
        runs.write(RUN, tmp_path / "a.run", tag="a b")
    with pytest.raises(ValueError, match="does not fit JSON"):
        runs.write(RUN.assign(vector=[np.zeros(2)] * 3), tmp_path / "a.jsonl")
    assert not list(tmp_path.iterdir())


def test_appended_pieces_make_one_run(tmp_path: Path) -> None:
    file = tmp_path / "a.run"
    with runs.writer(file, tag="t") as append:
        append(RUN[RUN["qid"] == "1"])
        assert not file.exists()
        append(RUN[RUN["qid"] == "2"])
    assert file.read_text() == TREC
    with runs.writer(tmp_path / "b.run") as append:
        append(RUN)
        with pytest.raises(ValueError, match="qid '2' was appended before"):
            append(RUN[RUN["qid"] == "2"])
    assert_frame_equal(runs.read(tmp_path / "b.run"), RUN)


def test_parquet_of_other_hands(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def put_table(**columns: object) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    def refused(what: str, **columns: object) -> None:
        with pytest.raises(runs.RunFileError, match=what):
            runs.read(put_table(**columns))

    ids = put_table(query_id=[1, 1, 2], doc_id=pa.array(["a", "b", "a"]).dictionary_encode(), score=[2.5, 1.5, 0.1])
    assert_frame_equal(runs.read(ids), RUN)
    refused("no column docno; there are: qid, score", qid=["1"], score=[1.0])
    refused("column score must hold numbers, it holds string", qid=["1"], docno=["a"], score=["1"])
    refused("column qid must hold ids, it holds double", qid=[1.5], docno=["a"], score=[1.0])
    refused("row 2: docno is missing", qid=["1", "1"], docno=["a", None], score=[1.0, 2.0])
    refused("row 2: score must be a finite number, got nan", qid=["1", "1"], docno=["a", "b"], score=[1.0, None])
    refused("row 2: docno 'a' occurs twice", qid=["1", "1"], docno=["a", "a"], score=[1.0, 2.0])
    refused("rank is missing in 1 rows", qid=["1", "1"], docno=["a", "b"], score=[1.0, 2.0], rank=[1, None])
    whole = put_table(qid=["1"], docno=["a"], score=[1.0]).read_bytes()
    with pytest.raises(runs.RunFileError, match="is broken"):
        runs.read(put(tmp_path, whole[:-20]))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-rankdistillm\[parquet\]'"):
        runs.read(put(tmp_path, b"PAR1 and more"))
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-rankdistillm\[parquet\]'"):
        runs.write(RUN, tmp_path / "a.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["some.run"]


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("__colbert__msmarco-passage-train-judged.run", "msmarco-passage/train/judged"),
        (
            "__rankzephyr-colbert-10000-sampled-100__msmarco-passage-train-judged.parquet",
            "msmarco-passage/train/judged",
        ),
        ("bm25__msmarco-passage-trec-dl-2019-judged.run.gz", "msmarco-passage/trec-dl-2019/judged"),
        ("__x__vaswani.tsv", "vaswani"),
        ("__x__msmarco-passage", "msmarco-passage"),
    ],
)
def test_a_lightning_ir_name_says_its_dataset(name: str, dataset: str) -> None:
    assert runs.dataset_of(f"some/folder/{name}") == dataset


@pytest.mark.parametrize(
    ("name", "why"), [("bm25.run", "it has no '__'"), ("__a__b.run", "no ir_datasets id is written 'b'")]
)
def test_other_names_do_not(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        runs.dataset_of(name)


def test_with_a_dataset_a_file_is_ready_for_re_ranking(tmp_path: Path) -> None:
    dataset = pt.get_dataset("rankdistillm:demo")
    runs.write(dataset.get_results(), tmp_path / "bm25.run.gz")
    for same in ("rankdistillm:demo", dataset):
        run = runs.read(tmp_path / "bm25.run.gz", dataset=same)
        assert list(run.columns) == ["qid", "docno", "score", "rank", "query", "text"]
        assert run["text"].tolist() == dataset.text_loader()(run[["docno"]])["text"].tolist()
        assert run["query"].tolist() == dataset.get_results()["query"].tolist()


@pytest.mark.shared
def test_the_papers_first_stage(shared: Path) -> None:
    run = runs.read(shared / "data" / "trec-dl-runs" / "bm25-pyterrier.trec-dl-2019.run.gz")
    assert len(run) == 42005
    assert run["qid"].nunique() == 43
    assert run.iloc[0].tolist() == ["19335", "8412684", 32.25045041042719, 0]
