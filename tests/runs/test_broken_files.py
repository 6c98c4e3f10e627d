"""Run files with one thing wrong: each is refused by file and line."""

from __future__ import annotations

import gzip
import math
import random
import re
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyterrier_rankdistillm import runs
from pyterrier_rankdistillm.errors import DataFileError, InputError
from pyterrier_rankdistillm.runs import files, streams
from pyterrier_rankdistillm.runs.given import qrels_of
from pyterrier_rankdistillm.runs.readers import read_qrels, read_texts, read_topics

pytest.importorskip("pyarrow")

GZ = gzip.compress(b"".join(b"q1 Q0 d%d %d %f t\n" % (i, i + 1, -i) for i in range(50)), mtime=0)

EDGES = {
    "first bytes of a gz": lambda: bytes(b ^ (0x10 if n == 40 else 0) for n, b in enumerate(GZ)),
    "head of a gz": lambda: GZ[:8],
    "gz of nothing but a line": lambda: gzip.compress(b"0" * (20 << 20), 1),
    "rank of 64 bits": lambda: b'{"qid": "1", "docno": "a", "score": 1, "rank": 9223372036854775808}\n',
    "rank of many digits": lambda: b'{"qid": "1", "docno": "a", "score": 1, "rank": ' + b"9" * 5000 + b"}\n",
    "score of many digits": lambda: b'{"qid": "1", "docno": "a", "rank": 1, "score": ' + b"9" * 400 + b"}\n",
    "rank in hexadecimal": lambda: b"1 Q0 a 0x10 1.0 t\n",
    "nesting": lambda: b'{"qid": "1", "docno": "a", "score": 1, "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}\n",
    "key twice": lambda: b'{"qid": "1", "docno": "a", "score": 1, "score": 2}\n',
    "rank in one line of two": lambda: (
        b'{"qid": "1", "docno": "a", "score": 1}\n{"qid": "1", "docno": "b", "score": 1, "rank": 2}\n'
    ),
    "vertical tab": lambda: b"1 Q0 a 1 \x0b1.0 t\n",
    "carriage return for a new line": lambda: b"1 Q0 a 1 2.0 t\r1 Q0 b 2 1.0 t\n",
    "carriage return before a line": lambda: b"\r1 Q0 a 1 2.0 t\n",
    "carriage return in a field": lambda: b"1 Q0 a\r 1 2.0 t\n",
    "carriage return between records": lambda: (
        b'{"qid": "1", "docno": "a", "score": 1}\r{"qid": "1", "docno": "b", "score": 2}\n'
    ),
    "two byte order marks": lambda: BOM_UTF8 * 2 + b"1 Q0 a 1 2.0 t\n",
    "byte order mark in line of two": lambda: b"1 Q0 a 1 2.0 t\n" + BOM_UTF8 + b"1 Q0 b 2 1.0 t\n",
    "byte order mark as line of two": lambda: b"1 Q0 a 1 2.0 t\n" + BOM_UTF8,
    "byte order mark in JSON, line of two": lambda: (
        b'{"qid": "1", "docno": "a", "score": 1}\n' + BOM_UTF8 + b'{"qid": "1", "docno": "b", "score": 2}\n'
    ),
}


@pytest.mark.parametrize("parser", ["fast", "slow"])
@pytest.mark.parametrize(
    ("rank", "what"),
    [("1e300", ", which 64 bits do not hold"), ("9.3e18", ", which 64 bits do not hold"), ("-1e19", ", which"),
     ("9223372036854775807.0", ", which"), ("9223372036854775808", ", which"), ("1e999", "."), ("inf", "."),
     ("-Infinity", "."), ("nan", "."), ("1.5", "."), ("0x10", "."), ("1_0", "."), ("\u0661", "."), ("1\x1c", ".")],
)  # fmt: skip
def test_a_rank_that_is_not_a_whole_number_of_64_bits(
    rank: str, what: str, parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cast makes another number of it, and none warns of that."""
    if parser == "slow":
        monkeypatch.setattr(files, "_plain_trec", lambda *_: None)
    file = tmp_path / "some.run"
    file.write_text(f"1 Q0 a 1 3.0 t\n1 Q0 b {rank} 2.0 t\n", encoding="utf-8")
    told = re.escape(f"{file}, line 2: rank must be a whole number, got {rank!r}{what}")
    for reader in (runs.read, lambda f: list(runs.read_parts(f)), runs.Rankings.from_file):
        with pytest.raises(runs.RunFileError, match=f"^{told}"):
            reader(file)


@pytest.mark.parametrize(
    "values",
    [[1.0, 1e300], [1.0, -1e300], [1.0, math.inf], [1.0, math.nan], [1.5, 2.0], np.array([1, 2**63], dtype=np.uint64)],
)
def test_a_number_in_a_frame_that_is_not_a_whole_number_of_64_bits(values: Any) -> None:
    run = pd.DataFrame({"qid": "1", "docno": ["a", "b"], "score": [2.0, 1.0], "rank": values})
    with pytest.raises(InputError, match=r"must have a whole number of 64 bits as rank in every row, got .* in row"):
        runs.read(run)
    with pytest.raises(InputError, match=r"must have whole numbers as labels, got dtype .* in row"):
        qrels_of(run.rename(columns={"rank": "label"}), who="f")


@pytest.mark.parametrize("parser", ["fast", "slow", "fast, line by line"])
@pytest.mark.parametrize("edge", EDGES)
def test_an_edge(edge: str, parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reads it, and wherever a block begins."""
    if parser == "slow":
        monkeypatch.setattr(files, "_plain_trec", lambda *_: None)
    if parser == "fast, line by line" and "nothing but a line" not in edge:
        monkeypatch.setattr(files, "_BLOCK", 10)
    file = tmp_path / "some.run"
    file.write_bytes(EDGES[edge]())
    line = 2 if "line of two" in edge else 1
    for reader in (runs.read, lambda f: list(runs.read_parts(f)), runs.Rankings.from_file):
        with pytest.raises(runs.RunFileError, match=rf"^{re.escape(str(file))}, line {line}: "):
            reader(file)


@pytest.mark.parametrize("qid", ["{1}", "PAR1", "[{", "[", "version", "#", '"a', "\x1f"])
@pytest.mark.parametrize("suffix", [".run", ".tsv", ".run.gz", ".jsonl", ".parquet"])
def test_ids_that_look_like_another_format(qid: str, suffix: str, tmp_path: Path) -> None:
    run = pd.DataFrame({"qid": [qid, qid, "z"], "docno": ["a", "b", "a"], "score": [2.0, 1.0, 3.0]})
    for written in (run, run.iloc[:1], run.iloc[[2, 0, 1]]):
        runs.write(written, tmp_path / f"a{suffix}")
        assert runs.read(tmp_path / f"a{suffix}")["qid"].tolist() == written["qid"].tolist()


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    run = pd.DataFrame({"qid": ["\ufeffq", "\ufeffq"], "docno": ["a", "b"], "score": [2.0, 1.0]})
    with pytest.raises(ValueError, match=r"write: qid '\\ufeffq' begins with a byte order mark"):
        runs.write(run, tmp_path / "a.run")
    assert list(tmp_path.iterdir()) == []
    runs.write(run, tmp_path / "a.jsonl")
    assert runs.read(tmp_path / "a.jsonl")["qid"].tolist() == ["\ufeffq", "\ufeffq"]


def test_parquet_edges(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    invalid = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    base: dict[str, Any] = {"qid": ["1"], "docno": ["a"], "score": [1.0]}
    for name, table in {
        "is broken": pa.table(base | {"docno": invalid}),
        "column 'score' occurs twice": pa.Table.from_arrays(
            [pa.array(values) for values in (*base.values(), [2.0])], names=[*base, "score"]
        ),
        "must hold whole numbers of 64 bits": pa.table(base | {"rank": pa.array([2**63], pa.uint64())}),
    }.items():
        pq.write_table(table, tmp_path / "some.parquet")
        with pytest.raises(runs.RunFileError, match=name):
            runs.read(tmp_path / "some.parquet")
    for rank in ([2**63], [1.5], [float("nan")]):
        for write in (lambda run: runs.write(run, tmp_path / "x.run"), runs.Rankings.from_frame):
            with pytest.raises(ValueError, match="rank must"):
                write(pd.DataFrame(base | {"rank": rank}))


JSON_TWICE = b'{"qid": "1", "query": "a", "query": "b", "docno": "1", "text": "a"}\n'
READERS = {"topics": read_topics, "texts": read_texts, "judgments": read_qrels}


@pytest.mark.parametrize(
    ("reader", "name", "content", "what"),
    [
        ("topics", "a.jsonl", JSON_TWICE, "line 1: not valid JSON: key 'query' occurs twice"),
        ("texts", "a.jsonl", JSON_TWICE, "line 1: not valid JSON: key 'query' occurs twice"),
        ("topics", "a.tsv", GZ, "line 1: the gz stream is broken"),
        ("texts", "a.parquet.gz", GZ, "the gz stream is broken"),
        ("topics", "a.parquet", b"PAR1 and more", " is broken"),
        ("judgments", "a.qrels", b"1 0 a 1\n1 0 b 9223372036854775808\n", "line 2: the label must be a whole number"),
        ("judgments", "a.qrels", b"1 0 a " + b"9" * 5000, "line 1: the label must be a whole number"),
        ("judgments", "a.qrels", "1 0 a \u0661\n".encode(), "line 1: the label must be a whole number"),
        ("judgments", "a.qrels", b"1 0 a 1\n1 0 b 1e300\n", "line 2: the label must be a whole number"),
    ],
)
def test_files_beside_runs(reader: str, name: str, content: bytes, what: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(bytes(b ^ (0x10 if n == 40 else 0) for n, b in enumerate(GZ)) if content is GZ else content)
    with pytest.raises(DataFileError, match=re.escape(what)) as caught:
        READERS[reader](file)
    assert str(caught.value).startswith(str(file))


def test_an_id_may_hold_white_space_that_does_not_end_a_field(tmp_path: Path) -> None:
    (tmp_path / "a.qrels").write_text("1 0 a\u00a0b 1\n", encoding="utf-8")
    assert read_qrels(tmp_path / "a.qrels").to_numpy().tolist() == [["1", "a\u00a0b", 1]]


def parquet_edges() -> dict[str, Any]:
    """Tables by what is wrong with them, for any reader that takes the columns of all."""
    import pyarrow as pa

    invalid = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    base: dict[str, Any] = {"qid": ["1"], "query": ["a"], "docno": ["a"], "text": ["a"], "score": [1.0]}
    return {
        "is broken": pa.table(base | {"docno": invalid, "query": invalid}),
        "column 'text' occurs twice": pa.Table.from_arrays(
            [pa.array(values) for values in (*base.values(), ["b"])], names=[*base, "text"]
        ),
    }


@pytest.mark.parametrize("suffix", [".parquet", ".parquet.gz"])
@pytest.mark.parametrize("what", ["is broken", "column 'text' occurs twice"])
def test_every_reader_of_parquet_refuses_what_is_damaged(suffix: str, what: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    file = tmp_path / f"a{suffix}"
    pq.write_table(parquet_edges()[what], tmp_path / "table")
    data = (tmp_path / "table").read_bytes()
    file.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    for reader in (runs.read, read_topics, read_texts, *((runs.ParquetText,) if suffix == ".parquet" else ())):
        with pytest.raises(DataFileError, match=f"^{re.escape(str(file))}.* {what}"):
            reader(file)
    assert {path.name for path in tmp_path.iterdir()} == {"table", file.name}


def test_a_bomb_of_gz_in_which_parquet_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up where it is larger than any file that anybody would pack."""
    monkeypatch.setattr(streams, "_SMALL", 1 << 20)
    monkeypatch.setattr(streams, "_BLOCK", 1 << 16)
    file = tmp_path / "a.parquet.gz"
    file.write_bytes(gzip.compress(b"PAR1" + bytes(8 << 20), mtime=0))
    told = rf"^{re.escape(str(file))} holds more than 1 MiB in a gz stream of {file.stat().st_size} bytes"
    for reader, kind in ((runs.read, runs.RunFileError), (read_texts, DataFileError)):
        with pytest.raises(kind, match=told):
            reader(file)


def test_a_footer_that_contradicts_itself(tmp_path: Path) -> None:
    """It has no checksum: a changed number of rows would lose some, a changed name the ranks."""
    run = pd.DataFrame({"qid": "1", "docno": [f"d{n:02}" for n in range(60)], "score": range(60), "rank": range(60)})
    file = tmp_path / "some.parquet"
    runs.write(run, file)
    good, right = file.read_bytes(), runs.read(file)
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    refused = 0
    for old, new in ((b"rank", b"sank"), (b"\x78", b"\x58"), (b"docno", b"docnp")):  # 60 is 0x78 as Parquet writes it
        place = good.find(old, footer)
        while place >= 0:
            file.write_bytes(good[:place] + new + good[place + len(old) :])
            try:
                assert runs.read(file)[list(right)].equals(right)
            except runs.RunFileError:
                refused += 1
            place = good.find(old, place + 1)
    assert refused >= 4


def test_pages_carry_checksums(tmp_path: Path) -> None:
    """Texts that are long and not compressible, so that a flipped bit is almost surely in one."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=400)) for _ in range(300)]
    run = pd.DataFrame({"qid": "1", "docno": words, "score": range(300)})
    runs.write(run, tmp_path / "some.parquet")
    good = (tmp_path / "some.parquet").read_bytes()
    seen = 0
    for _ in range(60):
        data = bytearray(good)
        data[rng.randrange(4, len(data) // 2)] ^= 1 << rng.randrange(8)
        (tmp_path / "some.parquet").write_bytes(data)
        try:
            read = runs.read(tmp_path / "some.parquet")
        except runs.RunFileError:
            seen += 1
        else:
            assert read["docno"].tolist() == sorted(words, key=words.index)
    assert seen >= 55
