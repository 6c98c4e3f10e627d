"""Frames with odd values, rows, columns and order: scored as each pair alone, or refused; never changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import tiny
import toy
from conftest import Rounds
from pandas.testing import assert_frame_equal

from pyterrier_rankdistillm import MonoElectra, runs

pytestmark = pytest.mark.filterwarnings("ignore")

ODD: dict[str, list[Any]] = {
    "missing": [None, float("nan"), pd.NA, pd.NaT],
    "other types": [7, 2.5, True, b"bytes", ("a",), ["a"], {"a": 1}, Path("a")],
    "strings": ["", " ", "\n", "\u2028", "\ufeff", "a\0b", "\ud800", "\U0001f600" * 3, "rain " * 300, "١٢"],
}


def odd_value(frame: pd.DataFrame, rng: Any, kind: str) -> pd.DataFrame:
    frame = frame.astype(object)
    column = rng.choice(["qid", "query", "docno", "text"])
    values = frame[column].tolist()
    values[rng.randrange(len(frame))] = rng.choice(ODD[kind])
    frame[column] = pd.Series(values, index=frame.index, dtype=object)
    return frame


def odd_rows(frame: pd.DataFrame, rng: Any) -> pd.DataFrame:
    return rng.choice((
        lambda: frame.sample(frac=1, random_state=rng.randrange(1000)),
        lambda: frame.iloc[:0],
        lambda: pd.concat([frame, frame.iloc[[rng.randrange(len(frame))]]]),
        lambda: frame.set_index(pd.Index([rng.randrange(3) for _ in range(len(frame))])),
        lambda: frame.iloc[[0]],
    ))()  # fmt: skip


def odd_columns(frame: pd.DataFrame, rng: Any) -> pd.DataFrame:
    name = rng.choice(["qid", "query", "docno", "text", "score", "rank"])
    return rng.choice((
        lambda: frame.drop(columns=name),
        lambda: pd.concat([frame, frame[[name]]], axis=1),
        lambda: frame.assign(**{name: frame[name].astype("category")}),
        lambda: frame.assign(**{name: frame[name].astype("string")}),
        lambda: frame.assign(score=np.nan, rank=-1),
        lambda: frame[rng.sample(list(frame.columns), len(frame.columns))],
        lambda: frame.assign(label=1, docid=range(len(frame))),
    ))()  # fmt: skip


@pytest.fixture(scope="module")
def reranker(checkpoint: Callable[[str], tiny.Tiny]) -> MonoElectra:
    return MonoElectra(checkpoint("lightning-ir-hub").folder, device="cpu", verbose=False)


def test_an_odd_frame(reranker: MonoElectra, rounds: Rounds) -> None:
    alone: dict[tuple[str, str], float] = {}

    def score(query: str, text: str) -> float:
        if (query, text) not in alone:
            one = pd.DataFrame({"qid": ["1"], "query": [query], "docno": ["1"], "text": [text]})
            alone[query, text] = float(reranker(one)["score"].iloc[0])
        return alone[query, text]

    for kind in rounds.of(*ODD, "rows", "columns", "scored", "refused"):
        rng = rounds.random
        frame = toy.RUN.sample(8, random_state=rng.randrange(10_000)).reset_index(drop=True)
        changes = [kind] if kind in (*ODD, "rows", "columns") else rng.sample([*ODD, "rows", "columns"], 2)
        for change in changes:
            if change in ODD and {"qid", "query", "docno", "text"} <= set(frame.columns) and len(frame):
                frame = odd_value(frame, rng, change) if frame.columns.is_unique else frame
            elif change == "rows" and len(frame):
                frame = odd_rows(frame, rng)
            elif change == "columns" and frame.columns.is_unique:
                frame = odd_columns(frame, rng)
        before = frame.copy(deep=True)
        try:
            result = reranker(frame)
        except (ValueError, TypeError, pt.validate.InputValidationError):
            rounds.hit("refused")
        else:
            assert len(result) == len(frame)
            assert set(result.columns) == {*frame.columns, "score", "rank"}
            for row in result.to_dict("records"):
                assert row["score"] == pytest.approx(score(row["query"], row["text"]), abs=1e-4)
            for _, ranking in result.groupby("qid", sort=False):
                assert sorted(ranking["rank"]) == list(range(len(ranking)))
                by_rank = ranking.sort_values("rank")["score"].tolist()
                assert by_rank == sorted(by_rank, reverse=True)
            rounds.hit("scored")
        assert_frame_equal(frame, before)
        rounds.hit(kind)


def test_what_is_written_is_read(rounds: Rounds, tmp_path: Path) -> None:
    """A frame that can be written comes back as it was; else nothing is written."""
    base = toy.RUN[["qid", "docno", "score", "rank"]]
    for kind in rounds.of("trec", "jsonl", "parquet", "written", "refused"):
        rng = rounds.random
        suffix = {"trec": ".run", "jsonl": ".jsonl", "parquet": ".parquet"}.get(kind, rng.choice((".run.gz", ".jsonl")))
        frame = base.sample(10, random_state=rng.randrange(10_000)).reset_index(drop=True)
        column = rng.choice(["qid", "docno", "score", "rank"])
        values = {
            "score": [1, 2.5, math.inf, math.nan, -0.0, 1e-320, None, "x", True, 10**30],
            "rank": [0, -3, 2**62, 2**63, 1.5, None, "x", 7.0],
        }.get(column, ["a b", "", "\u00a0", "x\u2028y", "ü", "\ud800", None, 5, "'", '"', "#", "a\tb", "-0x1", "NA"])
        odd = frame[column].tolist()
        odd[rng.randrange(1, len(frame))] = rng.choice(values)
        frame[column] = odd if column in ("score", "rank") else pd.Series(odd, dtype=object)
        target = tmp_path / f"some{suffix}"
        target.unlink(missing_ok=True)
        try:
            runs.write(frame, target)
        except (ValueError, TypeError, OverflowError):
            assert list(tmp_path.iterdir()) == []
            rounds.hit("refused")
        else:
            run = runs.read(target)
            assert run["qid"].tolist() == [str(qid) for qid in frame["qid"]]
            assert run["docno"].tolist() == [str(docno) for docno in frame["docno"]]
            assert run["score"].tolist() == [float(score) for score in frame["score"]]
            for _, part in frame.assign(read=run["rank"]).groupby("qid"):
                ordered = part.sort_values("read")["rank"].tolist()
                assert ordered == sorted(ordered)
            rounds.hit("written")
            target.unlink()
        rounds.hit(kind)
