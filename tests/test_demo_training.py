"""What the demo checkpoint is trained on: never a judged query, and of a piece's own passage only the rest."""

from __future__ import annotations

import gzip
import json
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

TEXTS = {
    "1": "the moon turns around the earth. it takes about twenty seven days for one turn. tides follow it.",
    "2": "bread goes stale since its starch crystallises again. a warm oven reverses that for a while.",
    "3": "radio waves are bent by the ionosphere and come back to the ground far beyond the horizon of the sender",
}


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "examples" / "train_demo_checkpoint.py"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "some"
    folder.mkdir()
    with gzip.open(folder / "passages.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"docno": docno, "text": text}) + "\n" for docno, text in TEXTS.items())
    (folder / "queries.tsv").write_text("1\twhy tides\n2\tstale bread\n", encoding="utf-8")
    (folder / "qrels.txt").write_text("1 0 1 0\n", encoding="utf-8")  # judged, if not relevant
    return folder


def opened(example: dict[str, Any], folder: Path) -> Any:
    return example["Collection"](folder.name, example["Source"]((folder.name,), 0, "minilm"), folder.parent)


def test_judged_queries_are_left_out(example: dict[str, Any], folder: Path) -> None:
    collection = opened(example, folder)
    assert collection.queries == {"some:2": "stale bread"}
    assert collection.texts == {f"some:{docno}": text for docno, text in TEXTS.items()}


def test_pieces_are_taken_out_of_their_passages(example: dict[str, Any], folder: Path) -> None:
    collection = opened(example, folder)
    pieces = example["pieces_of"](collection, 40)
    assert len(pieces) == 40
    assert {piece.docno for piece in pieces.values()} == set(collection.texts)
    openings = {"what", "is", "how", "does", "why", "are", "define", "to"}
    for piece in pieces.values():
        words = set(piece.query.split()) - openings
        assert words
        assert words <= set(example["words_of"](collection.texts[piece.docno]))
        assert 6 <= len(example["words_of"](piece.rest)) < len(example["words_of"](collection.texts[piece.docno]))
    assert example["pieces_of"](collection, 40) == pieces  # seeded
    assert len({piece.query for piece in pieces.values()}) > 10


def ranked(source: str, qid: str, query: str, *, piece: bool, dense: bool = False) -> list[dict[str, Any]]:
    """A query's list of two, as ``Collection.lists`` makes it."""
    own = {"qid": f"{qid} (dense)" if dense else qid, "query": query, "query_id": qid, "dense": dense}
    cosines = [{"e5": 0.9, "minilm": 0.12}, {"e5": 0.8, "minilm": 0.6}]
    return [{**own, "docno": str(n), "source": source, "piece": piece, **cosine} for n, cosine in enumerate(cosines)]


@pytest.fixture
def made(example: dict[str, Any], tmp_path: Path) -> Path:
    """Two typed queries of MS MARCO more than are put aside, a piece, and queries of CISI and Vaswani."""
    typed = range(example["ASIDE"] + 2)
    rows = [
        row
        for dense in (False, True)
        for n in typed
        for row in ranked("msmarco", f"{n}", f"q{n}", piece=False, dense=dense)
    ]
    rows += ranked("msmarco", "piece-0", "a piece", piece=True) + ranked("vaswani", "vaswani:piece-0", "v", piece=True)
    rows += ranked("cisi", "cisi:1", "c", piece=False)
    example["split"](pd.DataFrame(rows), tmp_path)
    return tmp_path


def test_queries_that_are_put_aside_are_never_trained_on(example: dict[str, Any], made: Path) -> None:
    aside = pd.read_parquet(made / "aside.parquet")
    trained = pd.read_parquet(made / "teacher.parquet")
    assert aside["query_id"].nunique() == example["ASIDE"]
    assert not aside["dense"].any()
    assert not aside["piece"].any()
    left = {qid.removesuffix(" (dense)") for qid in trained["qid"]} & {str(n) for n in range(example["ASIDE"] + 2)}
    assert len(left) == 2
    assert not left & set(aside["query_id"])


def test_each_collection_has_its_own_teacher_over_its_temperature(made: Path) -> None:
    scores = pd.read_parquet(made / "teacher.parquet").groupby("qid")["score"].apply(list)
    assert scores["piece-0"] == pytest.approx([0.9 / 0.01, 0.8 / 0.01])  # e5's order
    assert scores["vaswani:piece-0"] == pytest.approx([0.6 / 0.06, 0.12 / 0.06])  # MiniLM's
    assert scores["cisi:1"] == pytest.approx([10.0, 2.0])


def test_queries_that_people_typed_for_cisi_are_trained_on_several_times(example: dict[str, Any], made: Path) -> None:
    trained = pd.read_parquet(made / "teacher.parquet")
    copies = example["SOURCES"]["cisi"].copies
    own = [qid for qid in trained["qid"].unique() if qid.startswith("cisi:")]
    assert sorted(own) == sorted(["cisi:1", *(f"cisi:1 ({n})" for n in range(2, copies + 1))])
    topics = pd.read_csv(made / "topics.tsv", sep="\t", names=["qid", "query"], dtype=str).set_index("qid")["query"]
    assert (topics[own] == "c").all()
    assert set(topics.index) == set(trained["qid"])


def test_every_start_stays_below_30_mb(example: dict[str, Any]) -> None:
    """In float16, with its words: six layers of 384, and the tables of words and positions."""
    layer = 4 * 384 * 385 + 384 * 1537 + 1536 * 385 + 4 * 384
    for start in example["STARTS"].values():
        tables = (start.words + example["POSITIONS"] + 2) * start.embedding_size + start.embedding_size * 384
        assert 2 * (example["LAYERS"] * layer + tables) < 30_000_000
