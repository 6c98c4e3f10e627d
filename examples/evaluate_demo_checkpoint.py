"""Measures checkpoints on real collections: the numbers in the README and in the demo's model card.

    pip install pyterrier-rankdistillm[demo,report]
    python examples/evaluate_demo_checkpoint.py --data ../shared/data
    python examples/evaluate_demo_checkpoint.py --data ../shared/data ours=my-checkpoint demo=rankdistillm:demo
    python examples/evaluate_demo_checkpoint.py --data ../shared/data --also cranfield cacm

``--data`` holds ``trec-dl-2019-pool``, ``vaswani`` and ``cisi`` (each with passages.jsonl.gz, queries.tsv, qrels.txt)
and ``trec-dl-runs`` (first stages). First stages are these runs, and live BM25 (PISA) over each collection. Of runs
over MS MARCO only the documents in the pool have text: these lists are condensed. ``--also`` names more folders of that
kind, such as of collections that no checkpoint was trained on. Printed are nDCG@10, and p of a
paired t-test between the first stage and the first model.
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
        name: For people.
        folder: The collection's, within the data.
        run: File of the first stage; None: live BM25.
        depth: Of live BM25.
    """

    name: str
    folder: str
    run: str | None = None
    depth: int = LIVE_DEPTH

    def reproduce(self, systems: Mapping[str, Any], data: Path) -> Reproduction:
        """Measures re-rankers."""
        folder = data / self.folder
        texts = folder / "passages.jsonl.gz"
        given: dict[str, Any] = {"topics": folder / "queries.tsv", "qrels": folder / "qrels.txt", "text": texts}
        if self.run is not None:
            run = data / "trec-dl-runs" / self.run
            return reproduce("trec-dl-2019", systems, first_stage=run, condensed=True, **given)
        with tempfile.TemporaryDirectory() as scratch, gzip.open(texts, "rt", encoding="utf-8") as file:
            index = PisaIndex(f"{scratch}/index.pisa", text_field="text")
            index.index(map(json.loads, file))
            bm25 = index.bm25(num_results=self.depth)
            return reproduce(f"folder:{folder.name}", systems, first_stage=bm25, **given)


CONDENSED_BM25 = Setting(
    "TREC DL 2019, BM25 (Pyserini) top 100, condensed", "trec-dl-2019-pool", "bm25-pyserini.trec-dl-2019.run.gz"
)


def live(name: str, folder: str) -> Setting:
    return Setting(f"{name}, live BM25 (PISA) top {LIVE_DEPTH}", folder)


VASWANI, CISI = live("Vaswani", "vaswani"), live("CISI", "cisi")
SETTINGS = (
    CONDENSED_BM25,
    Setting(
        "TREC DL 2019, BM25 (PyTerrier) top 100, condensed", "trec-dl-2019-pool", "bm25-pyterrier.trec-dl-2019.run.gz"
    ),
    Setting("TREC DL 2019, ColBERTv2 top 100, condensed", "trec-dl-2019-pool", "colbertv2.trec-dl-2019.run.gz"),
    live("TREC DL 2019 pool", "trec-dl-2019-pool"),
    VASWANI,
    CISI,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", default=["demo=rankdistillm:demo"], help="NAME=MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--also", type=Path, nargs="+", default=[], help="folders of more collections")
    args = parser.parse_args()
    systems = {name: MonoElectra(model) for name, model in (model.split("=", 1) for model in args.model)}
    rows = []
    for setting in (*SETTINGS, *(live(folder.name, str(folder.absolute())) for folder in args.also)):
        result = setting.reproduce(systems, args.data)
        first_stage = first_stage_of(result)
        values = {"first stage": first_stage["value"], **result.cells.set_index("system").loc[list(systems), "value"]}
        rows.append({"collection, first stage": setting.name, **values, "p": first_stage["p_value"]})
        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format), flush=True)


def first_stage_of(result: Reproduction) -> pd.Series:
    """The first stage's cell; the condensed one, where there are both."""
    return result.cells[result.cells["system"].str.startswith("first stage")].iloc[-1]


if __name__ == "__main__":
    main()
