"""Run files with something changed in them: read as another reader reads them, or refused by file and line."""

from __future__ import annotations

import gzip
import io
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import child
import pandas as pd
import pytest
from conftest import Rounds

from pyterrier_rankdistillm import runs
from pyterrier_rankdistillm.runs import files

pytest.importorskip("pyarrow")

RUN = pd.DataFrame(
    [(f"q{q}", f"d{q}-{n:02}", 9.5 - n / 4, 19 - n if q == 1 else n) for q in range(3) for n in range(20)],
    columns=["qid", "docno", "score", "rank"],
)
"""Where the ranks of a query contradict its scores, a lost rank shows."""


def content(suffix: str) -> bytes:
    stream = io.BytesIO()
    name = suffix.removeprefix(".").removesuffix(".gz")
    if name == "json":  # as rank_llm writes
        results = [
            {"query": {"text": f"what is {qid}", "qid": qid}, "candidates": [
                {"docid": row.docno, "score": row.score} for row in ranking.itertuples()
            ]} for qid, ranking in RUN.groupby("qid")
        ]  # fmt: skip
        return json.dumps(results, indent=1).encode()
    formats: dict[str, Any] = {"run": "trec", "jsonl": "jsonl", "parquet": "parquet"}
    runs.write(RUN, stream, format=formats[name])
    return gzip.compress(stream.getvalue(), mtime=0) if suffix.endswith(".gz") else stream.getvalue()


def flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def replace(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice(b' \t\n\r\0\x0b\xff-.eE+_"{}[],:0x9')


def insert(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data) + 1)
    odd = (
        b" ",
        b"\n",
        b"\xef\xbb\xbf",
        b"\xff",
        b"0x1",
        b"1e999",
        b"nan",
        b"\xe2\x80\xa8",
        b"[" * 5000,
        b'"rank": 1, ',
    )
    data[place:place] = rng.choice(odd)


def delete(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.choice((1, 1, 3, 40))]


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def double(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    part = data[start : start + rng.randrange(1, 60)]
    data[start:start] = part


def blank(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(1, 30))
    data[start:end] = bytes(end - start)


MUTATIONS: dict[str, Callable[[bytearray, random.Random], None]] = {
    function.__name__: function for function in (flip, replace, insert, delete, truncate, double, blank)
}


def plain_trec(data: bytes) -> list[tuple[str, str, float, int]]:
    """As a run is read without any of this package."""
    rows = []
    for line in data.decode("utf-8-sig").split("\n"):
        fields = re.split("[ \t]+", line.strip(" \t\r"))
        if fields != [""]:
            qid, _, docno, rank, score, _ = fields
            rows.append((qid, docno, float(score), int(float(rank))))
    return rows


def plain_jsonl(data: bytes) -> list[tuple[str, str, float, int]]:
    records = [json.loads(line) for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    named = [{{"query_id": "qid", "doc_id": "docno", "docid": "docno"}.get(k, k): v for k, v in r.items()} for r in records]  # fmt: skip # noqa: E501
    return [(str(r["qid"]), str(r["docno"]), float(r["score"]), r.get("rank", -1)) for r in named]


def plain_results(data: bytes) -> list[tuple[str, str, float, int]]:
    return [
        (str(result["query"]["qid"]), str(candidate["docid"]), float(candidate["score"]), rank)
        for result in json.loads(data.decode("utf-8-sig"))
        for rank, candidate in enumerate(result["candidates"], start=1)
    ]


def plain(suffix: str, data: bytes) -> list[tuple[str, str, float, int]]:
    if suffix.endswith(".gz"):
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if ".parquet" in suffix:
        return [(q, d, s, r + 1) for q, d, s, r in RUN.itertuples(index=False)]
    return {".run": plain_trec, ".jsonl": plain_jsonl, ".json": plain_results}[suffix.removesuffix(".gz")](data)


def in_order(rows: list[tuple[str, str, float, int]]) -> dict[str, list[tuple[str, float]]]:
    """Each query's documents and scores, best first, by rank; equal ranks by score, then by docno, descending."""
    rankings: dict[str, list[tuple[str, str, float, int]]] = {}
    for row in rows:
        rankings.setdefault(row[0], []).append(row)
    ranked = any(row[3] != -1 for row in rows)
    return {
        qid: [
            (row[1], row[2])
            for row in sorted(
                sorted(found, key=lambda row: row[1], reverse=True),
                key=lambda row: (row[3] if ranked else 0, -row[2]),
            )
        ]
        for qid, found in rankings.items()
    }  # fmt: skip


def check(suffix: str, file: Path, data: bytes) -> str:
    """Whether the file is refused or read, as it should be."""

    def attempt(reader: Callable[[Path], pd.DataFrame]) -> pd.DataFrame | None:
        try:
            return reader(file)
        except runs.RunFileError as error:
            message = str(error)
            assert message.startswith(str(file))
            if ".parquet" not in suffix and "has no rows" not in message and "no column" not in message:
                where = r"(, (line|row|result) \d+| is broken|: the gz stream)"
                assert re.match(re.escape(str(file)) + where, message), message
            return None

    run, parts = attempt(runs.read), attempt(lambda file: pd.concat(list(runs.read_parts(file))))
    if run is None:
        return "refused"
    assert parts is None or parts.reset_index(drop=True).equals(run)
    ours = {
        qid: list(zip(part["docno"], part["score"], strict=True))
        for qid, part in run.sort_values("rank").groupby("qid", sort=False)
    }
    assert all(math.isfinite(score) for score in run["score"])
    assert ours == in_order(plain(suffix, data))
    return "read"


@pytest.mark.parametrize(
    ("suffix", "parser"),
    [(suffix, "fast") for suffix in (".run", ".jsonl", ".json", ".parquet", ".run.gz", ".jsonl.gz", ".parquet.gz")]
    + [(".run", "slow"), (".run.gz", "slow")],
)
def test_a_changed_run(
    suffix: str, parser: str, rounds: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parser == "slow":
        monkeypatch.setattr(files, "_plain_trec", lambda *_: None)
    good = content(suffix)
    file = tmp_path / f"some{suffix}"
    for kind in rounds.of(*MUTATIONS, "refused", "read"):
        name = kind if kind in MUTATIONS else rounds.random.choice(list(MUTATIONS))
        within = suffix.endswith(".gz") and rounds.random.random() < 0.5
        data = bytearray(gzip.decompress(good) if within else good)
        MUTATIONS[name](data, rounds.random)
        data = bytearray(gzip.compress(data, mtime=0)) if within else data
        file.write_bytes(data)
        try:
            outcome = check(suffix, file, bytes(data))
        except BaseException:
            print(suffix, name, bytes(data))
            raise
        rounds.hit(outcome)
        if bytes(data) != good:
            rounds.hit(name)


@pytest.mark.parametrize(
    ("head", "piece", "what"),
    [
        (b"", b"0" * (16 << 20), "line 1: longer than 16 MiB"),
        (b"PAR1", bytes(16 << 20), " MiB in a gz stream of 10"),
    ],
    ids=["a line", "Parquet"],
)
def test_a_bomb_takes_blocks_of_memory(head: bytes, piece: bytes, what: str, tmp_path: Path) -> None:
    file = tmp_path / "bomb.run.gz"
    file.write_bytes(gzip.compress(head) + gzip.compress(piece) * 64)

    def read() -> None:
        child.limit_memory(400 << 20)
        runs.read(file)

    ended = child.run(read, seconds=60)
    assert ended.error is not None
    assert ended.error[0] == "RunFileError"
    assert what in ended.error[1]
