"""Evaluates checkpoints on real collections: the numbers in the README and in the demo's model card.

    pip install pyterrier-rankdistillm[demo,report]
    python examples/evaluate_demo_checkpoint.py --data ../shared/data
    python examples/evaluate_demo_checkpoint.py --data ../shared/data ours=my-checkpoint demo=rankdistillm:demo
    python examples/evaluate_demo_checkpoint.py --data ../shared/data --also cranfield cacm

``--data`` holds ``trec-dl-2019-pool``, ``trec-dl-2020-pool``, ``vaswani`` and ``cisi`` (each with passages.jsonl.gz,
queries.tsv, qrels.txt) and ``trec-dl-runs`` (first stages). First stages are these runs, and live BM25 (PISA) over each
collection. In the runs over MS MARCO, only the documents in the year's pool have a text. These lists are condensed, and
each row says how many of the run's documents were ranked. ``--also`` names further folders of the same kind, for
instance of collections that no checkpoint was trained on. The output is nDCG@10, and p of a paired t-test between the
first stage and the first model.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyterrier_pisa import PisaIndex

from pyterrier_rankdistillm import MonoElectra, Reproduction, reproduce

LIVE_DEPTH = 50


@dataclass(frozen=True)
class Setting:
    """A collection with a first stage.

    Args:
        name: Shown in the table.
        folder: The collection's folder within the data.
        run: File of the first stage, over TREC DL of ``year``; None for live BM25.
        year: The year of TREC DL.
        depth: The depth of live BM25.
    """

    name: str
    folder: str
    run: str | None = None
    year: int = 2019
    depth: int = LIVE_DEPTH

    def reproduce(self, systems: Mapping[str, Any], data: Path) -> Reproduction:
        """Evaluates re-rankers over the first stage."""
        folder = data / self.folder
        texts = folder / "passages.jsonl.gz"
        given: dict[str, Any] = {
            "topics": folder / "queries.tsv", "qrels": folder / "qrels.txt", "text": texts,
            "baseline": next(iter(systems)),
        }  # fmt: skip
        if self.run is not None:
            run = data / "trec-dl-runs" / self.run
            return reproduce(f"trec-dl-{self.year}", systems, first_stage=run, condensed=True, **given)
        with tempfile.TemporaryDirectory() as scratch, gzip.open(texts, "rt", encoding="utf-8") as file:
            index = PisaIndex(f"{scratch}/index.pisa", text_field="text")
            index.index(map(json.loads, file))
            bm25 = index.bm25(num_results=self.depth)
            return reproduce(f"folder:{folder.name}", systems, first_stage=bm25, **given)


def trec_dl(year: int, name: str, run: str) -> Setting:
    file = f"{run}.trec-dl-{year}.run.gz"
    return Setting(f"TREC DL {year}, {name} top 100, condensed", f"trec-dl-{year}-pool", file, year)


def live(name: str, folder: str) -> Setting:
    return Setting(f"{name}, live BM25 (PISA) top {LIVE_DEPTH}", folder)


SETTINGS = (
    trec_dl(2019, "BM25 (Pyserini)", "bm25-pyserini"),
    trec_dl(2020, "BM25 (Pyserini)", "bm25-pyserini"),
    trec_dl(2019, "BM25 (PyTerrier)", "bm25-pyterrier"),
    trec_dl(2019, "ColBERTv2", "colbertv2"),
    trec_dl(2020, "ColBERTv2", "colbertv2"),
    live("Vaswani", "vaswani"),
    live("CISI", "cisi"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", default=["demo=rankdistillm:demo"], help="NAME=MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default="", help="settings whose name has this, such as 2020 or Vaswani")
    parser.add_argument("--also", type=Path, nargs="+", default=[], help="folders of further collections")
    args = parser.parse_args()
    systems = {name: MonoElectra(model) for name, model in (model.split("=", 1) for model in args.model)}
    rows = []
    settings = (*SETTINGS, *(live(folder.name, str(folder.absolute())) for folder in args.also))
    for setting in (setting for setting in settings if args.only in setting.name):
        result = setting.reproduce(systems, args.data)
        first_stage = first_stage_of(result)
        values = {"first stage": first_stage["value"], **result.cells.set_index("system").loc[list(systems), "value"]}
        ranked = f"{first_stage['documents']:,} of {first_stage['retrieved']:,}"
        rows.append({
            "collection, first stage": setting.name, "ranked": ranked, **values, "p": first_stage["p_value"]
        })  # fmt: skip
        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format), flush=True)


def first_stage_of(result: Reproduction) -> pd.Series:
    """The first stage's cell; the condensed one if there are both."""
    return result.cells[result.cells["system"].str.startswith("first stage")].iloc[-1]


if __name__ == "__main__":
    main()
