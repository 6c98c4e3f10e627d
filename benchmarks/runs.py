"""Reading and writing runs, beside PyTerrier's own: time, and the peak memory of a process that does nothing else.

    python benchmarks/runs.py bm25.run.gz              # a run of yours
    python benchmarks/runs.py --rows 10000000          # a synthetic one, 100 documents a query
    python benchmarks/runs.py --rankings               # runs larger than memory: does memory grow with the rows?

Each line is measured in a process of its own. Peak memory is that of the whole process, libraries included (the line
"nothing" is what they take). On a busy machine compare processor time (all threads), not the clock's.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
from measuring import Clock, in_a_process, memory_mb

from pyterrier_rankdistillm import runs

DEPTH = 100
RANKINGS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a TREC run; default: a synthetic one")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--formats", nargs="+", default=["run", "run.gz", "parquet", "jsonl"])
    parser.add_argument("--rankings", action="store_true", help="measure Rankings with a tenth of the rows and all")
    args = parser.parse_args()
    if args.rankings:
        rankings([args.rows // 10, args.rows], [f for f in args.formats if f in ("run", "run.gz", "parquet", "jsonl")])
        return
    with tempfile.TemporaryDirectory() as folder:
        source = args.run or Path(folder) / "synthetic.run"
        if args.run is None:
            in_a_process(step, "synthetic", str(args.rows), source)
        formats = [f for f in args.formats if f != "parquet" or importlib.util.find_spec("pyarrow")]
        steps = [("nothing", source, "-"), ("pt.io.read_results", source, "-"), ("runs.read", source, "-")]
        for suffix in formats:
            target = Path(folder) / f"copy.{suffix}"
            steps += [("runs.write", source, target), ("runs.read", target, "-")]
            if suffix in ("run", "run.gz"):
                steps += [("pt.io.write_results", source, Path(folder) / f"theirs.{suffix}")]
        print(f"{'':22}{'file':>16}{'rows':>12}{'MB':>8}{'seconds':>9}{'cpu':>9}{'peak MB':>9}")
        for name, origin, target in steps:
            done = in_a_process(step, name, origin, target)
            file = Path(origin if target == "-" else target)
            print(
                f"{name:22}{''.join(file.suffixes[-2:])[-16:]:>16}{done['rows']:12,}{file.stat().st_size / 1e6:8.1f}"
                f"{done['seconds']:9.2f}{done['cpu']:9.2f}{done['peak']:9.0f}",
                flush=True,
            )


def rankings(sizes: list[int], formats: list[str]) -> None:
    """Makes the mapped form of synthetic runs in one process, and reads random rankings from it in another.

    Anonymous memory is what the process must hold; pages of the mapped file are the system's to drop.
    """
    columns = f"{'MB':>8}{'seconds':>9}{'cpu':>9}{'peak MB':>9}{'anonymous MB':>14}{'mapped MB':>11}"
    print(f"{'':24}{'file':>9}{'rows':>12}{columns}")
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            first = Path(folder) / "synthetic.run"
            in_a_process(step, "synthetic", str(rows), first)
            for suffix in formats:
                source = Path(folder) / f"copy.{suffix}"
                in_a_process(step, "runs.write", first, source)
                for name in ("nothing", "Rankings.from_file", f"{RANKINGS:,} rankings"):
                    done = in_a_process(step, name, source, "-")
                    file = source if name != f"{RANKINGS:,} rankings" else source.with_name(f"{source.name}.rankings")
                    print(
                        f"{name:24}{suffix:>9}{rows:12,}{file.stat().st_size / 1e6:8.1f}{done['seconds']:9.2f}"
                        f"{done['cpu']:9.2f}{done['peak']:9.0f}{done['anonymous']:14.0f}{done['mapped']:11.0f}",
                        flush=True,
                    )


def step(name: str, source: str, target: str) -> dict[str, float]:
    """Does one thing; for writing, the run is read first, which is not timed but counts for the memory."""
    run = runs.read(source) if "write" in name else pd.DataFrame()
    clock = Clock()
    if name == "synthetic":
        runs.write(synthetic(int(source)), target)
    elif name == "runs.read":
        run = runs.read(source)
    elif name == "pt.io.read_results":
        run = pt.io.read_results(source)
    elif name == "runs.write":
        runs.write(run, target)
    elif name == "pt.io.write_results":
        pt.io.write_results(run, target)
    elif name == "Rankings.from_file":
        kept = runs.Rankings.from_file(source)
    elif name == f"{RANKINGS:,} rankings":
        kept = runs.Rankings.from_file(source)
        draw = random.Random(0)
        for _ in range(RANKINGS):
            kept[draw.randrange(len(kept))]
    return {**clock.read(), "rows": len(run), **memory_mb()}


def synthetic(rows: int) -> pd.DataFrame:
    """Rankings of distinct documents out of MS MARCO's 8.8 million, with scores of full precision."""
    rng = np.random.default_rng(0)
    queries = max(1, rows // DEPTH)
    first = rng.integers(0, 8_841_823 - DEPTH, queries)
    docnos = (first[:, None] + np.arange(DEPTH)[None, :]).ravel()
    scores = -np.sort(-rng.normal(size=(queries, DEPTH)), axis=1).ravel()
    return pd.DataFrame(
        {
            "qid": pd.Series(np.repeat(np.arange(queries), DEPTH)).astype(str),
            "docno": pd.Series(docnos).astype(str),
            "score": scores,
            "rank": np.tile(np.arange(DEPTH), queries),
        }
    )


if __name__ == "__main__":
    main()
