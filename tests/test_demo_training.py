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


def test_judged_queries_are_left_out(example: dict[str, Any], folder: Path) -> None:
    collection = example["Collection"](folder)
    assert collection.queries == {"some:2": "stale bread"}
    assert collection.texts == {f"some:{docno}": text for docno, text in TEXTS.items()}


def test_pieces_are_taken_out_of_their_passages(example: dict[str, Any], folder: Path) -> None:
    collection = example["Collection"](folder)
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


def test_stage_1_has_the_rest_as_relevant_and_not_its_source(example: dict[str, Any]) -> None:
    piece = example["Piece"]("turn around", "some:1", "tides follow it.")
    run = pd.DataFrame(
        [["p", "turn around", "some:1", 3.0, "the source"], ["p", "turn around", "some:3", 2.0, "another"],
         ["typed", "stale bread", "some:2", 1.0, "bread"]],
        columns=["qid", "query", "docno", "score", "text"],
    )  # fmt: skip
    found, qrels = example["labelled"](run, {"p": piece})
    ranked = found.sort_values("rank")
    assert ranked[["qid", "docno", "text", "rank"]].to_numpy().tolist() == [
        ["p", "rest of p", "tides follow it.", 0],
        ["p", "some:3", "another", 1],
    ]
    assert qrels.to_numpy().tolist() == [["p", "rest of p", 1]]


def test_stage_2_has_queries_that_people_typed_several_times(example: dict[str, Any]) -> None:
    run = pd.DataFrame({"qid": ["p", "typed"], "query": ["a", "b"], "docno": ["1", "2"], "text": ["x", "y"]})
    teacher = pd.DataFrame({"qid": ["p", "typed"], "docno": ["1", "2"], "score": [0.5, 0.25], "rank": [0, 0]})
    taught = example["taught"](run, teacher, {"p": None})
    assert taught["qid"].value_counts().to_dict() == {
        "p": 1, "typed": 1, **{f"typed ({n})": 1 for n in range(2, example["COPIES"] + 1)}
    }  # fmt: skip
    assert set(taught.loc[taught["query"] == "b", "score"]) == {0.25}
