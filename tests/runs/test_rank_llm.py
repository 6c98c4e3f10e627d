"""rank_llm's own output, as its ``DataWriter`` writes it (castorini/rank_llm, src/rank_llm/data.py)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pyterrier_rankdistillm import runs

RESULTS: list[dict[str, Any]] = [
    {
        "query": {"text": "why does bread rise", "qid": 264014},
        "candidates": [
            {"docid": "7", "score": 9.5, "doc": {"contents": "Yeast."}},
            {"docid": 3, "score": 8, "doc": {"contents": "Water."}},
        ],
    },
    {"query": {"text": "why does it rain", "qid": "q2"}, "candidates": [{"docid": "7", "score": 1.0, "doc": {}}]},
    {"query": {"text": "nothing", "qid": "q3"}, "candidates": []},
]
ROWS = [
    ("264014", "7", 9.5, 0, "why does bread rise"),
    ("264014", "3", 8.0, 1, "why does bread rise"),
    ("q2", "7", 1.0, 0, "why does it rain"),
]


def write(path: Path, results: Any) -> Path:
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    else:
        text = json.dumps(results, indent=2, ensure_ascii=False)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["results.json", "results.jsonl", "results.json.gz"])
def test_results_are_runs(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, RESULTS)
    read = runs.read(path)
    assert list(read[["qid", "docno", "score", "rank", "query"]].itertuples(index=False, name=None)) == ROWS
    assert sum(len(part) for part in runs.read_parts(path)) == 3
    by_rank = runs.read(path, order="rank")
    assert "score" not in by_rank
    mapped = runs.Rankings.from_file(path)
    assert [(one.qid, one.docnos, one.query) for one in mapped] == [
        ("264014", ["7", "3"], "why does bread rise"),
        ("q2", ["7"], "why does it rain"),
    ]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([{"query": {"qid": "1"}, "candidates": [{"docid": "a", "score": 1.0}]}], r"result 1: .*query \(qid, text\)"),
        ([RESULTS[0], {"query": {"qid": "1", "text": "x"}, "candidates": [{"docid": "a"}]}], "result 2: .*'score'"),
        ([{"query": {"qid": "1", "text": "x"}, "candidates": [{"docid": "a", "score": "high"}]}], "got 'high'"),
        ([{"query": {"qid": 1.5, "text": "x"}, "candidates": [{"docid": "a", "score": 1}]}], "ids must be strings"),
        ([{"query": {"qid": "1", "text": "x"}, "candidates": [{"docid": "a", "score": 1}] * 2}], "'a' occurs twice"),
    ],
)
def test_malformed_results_are_errors(tmp_path: Path, results: Any, said: str) -> None:
    with pytest.raises(runs.RunFileError, match=said):
        runs.read(write(tmp_path / "results.json", results))


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "results.json", RESULTS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(runs.RunFileError, match=r"results.json, line 1: not valid JSON"):
        runs.read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "is a Git LFS pointer"),
        (b"BZh91AY&SY\xff\xfe\x01", "packed by bzip2"),
        (b"PK\x03\x04\xff\xfe", "packed by zip"),
    ],
)
def test_what_is_no_run_is_told_as_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "some.run").write_bytes(content)
    with pytest.raises(runs.RunFileError, match=said):
        runs.read(tmp_path / "some.run")
