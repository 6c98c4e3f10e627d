"""What Ray costs: speed beside the local engine on the same input, and memory over a run of a million rows.

    python benchmarks/scale.py --rounds 3 --threads 2    # speed
    python benchmarks/scale.py --rows 1000000            # memory

Speed: the demo checkpoint and the demo's passages, by one process with so many threads, by one actor with as many, and
by two actors that share them (with one thread each at least). Each run is a process of its own, with a Ray of its own.
Starting (imports, Ray, its actors, the model) takes the same for a small input and a large one, and a run of days does
not feel it: both are timed, and the difference counts. Processor time is that of the process and all that it started;
on a busy machine it says more than the clock, above all with one thread, since threads spin while they wait for each
other. Rounds alternate; the medians of the rounds' ratios are printed.

Memory: a tiny checkpoint with random weights, texts in Parquet, 100 short passages a query; the most that the driver
and a worker were resident with, of which what is mapped from files (libraries, run, texts) is the system's to drop.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
from large_frame import TINY, WORDS, save_random
from measuring import Spread, describe, in_a_process, median, memory_mb

CORES = os.cpu_count() or 1
ACTORS = {"local": 0, "ray, 1 actor": 1, "ray, 2 actors": 2}


class Watch(threading.Thread):
    """Looks, every second, what this process and all that it started use."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[int, float] = {}
        self.roles: dict[int, str] = {}
        self.peaks: dict[str, dict[str, float]] = {}
        self.over = False

    def run(self) -> None:
        while not self.over:
            self.look()
            time.sleep(1.0)

    def look(self) -> None:
        parents: dict[int, tuple[int, str, float]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:  # it has just ended
                continue
            fields = rest.split()
            ticks = int(fields[11]) + int(fields[12])
            parents[int(folder.name)] = int(fields[1]), name, ticks / os.sysconf("SC_CLK_TCK")
        for pid, (_, name, seconds) in parents.items():
            ancestor = pid
            while ancestor not in (0, 1, os.getpid()) and ancestor in parents:
                ancestor = parents[ancestor][0]
            if ancestor != os.getpid():
                continue
            self.seconds[pid] = seconds
            role = "driver" if pid == os.getpid() else "worker" if name.startswith("ray::Map") else "Ray"
            self.roles[pid] = role
            if role != "Ray":
                self.note(role, pid)

    def note(self, role: str, pid: int) -> None:
        peak = self.peaks.setdefault(role, {})
        for what, size in memory_mb(pid).items():
            peak[what] = max(peak.get(what, 0.0), size)  # what is NaN is not larger


def rerank(run: str, model: str, text: str, topics: str, actors: int, threads: int, output: str) -> dict[str, Any]:
    """One run of an engine, and what it took."""
    from pyterrier_rankdistillm import MonoElectra, rerank_dataset, runs

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (as the local engine: Ray makes workers wait for others)
    watch = Watch()
    watch.start()
    started = time.monotonic()
    reranker = MonoElectra(model, device="cpu")
    if actors:
        import ray

        ray.init(address="local", num_cpus=actors * threads, include_dashboard=False, log_to_driver=False)
        # Shards of a few queries here, as they are of a hundred in a long run: one query alone has more padding.
        size = 8 if topics else None
        options = {"num_workers": actors, "shard_size": size, "verbose": False}
        rerank_dataset(run, reranker, output, text=text, topics=topics, **options)
    else:
        import torch

        torch.set_num_threads(threads)
        frame = runs.add_text(runs.add_queries(runs.read(run), topics), text)
        runs.write(reranker(frame)[["qid", "docno", "score", "rank"]], output)
    clock = time.monotonic() - started
    watch.look()
    watch.over = True
    found = {"clock": clock, "processor": sum(watch.seconds.values()), "peaks": watch.peaks}
    for role in ("driver", "worker", "Ray"):
        found[role] = sum(seconds for pid, seconds in watch.seconds.items() if watch.roles[pid] == role)
    return found


def speed(scratch: Path, rounds: int, pairs: int, threads: int) -> None:
    from pyterrier_rankdistillm import runs

    demo = "rankdistillm:demo"
    topics = runs.load_topics(demo)
    docnos = [document["docno"] for document in runs.documents(demo)]
    sizes = {"small": 2 * len(topics), "large": pairs}
    for name, size in sizes.items():
        depth = size // len(topics)
        rows = [(qid, docno, -rank, rank) for qid in topics["qid"] for rank, docno in enumerate(docnos[:depth])]
        runs.write(pd.DataFrame(rows, columns=["qid", "docno", "score", "rank"]), scratch / f"{name}.run")
    more = len(runs.read(scratch / "large.run")) - len(runs.read(scratch / "small.run"))
    took: dict[str, list[dict[str, float]]] = {engine: [] for engine in ACTORS}
    for number in range(rounds):
        for engine, actors in ACTORS.items():
            each = max(1, threads // max(1, actors))
            taken = {}
            for name in sizes:
                output = scratch / f"{number}{actors}{name}.run"
                taken[name] = in_a_process(rerank, scratch / f"{name}.run", demo, demo, demo, actors, each, output)
            small, large = taken["small"], taken["large"]
            took[engine].append(
                {kind: large[kind] - small[kind] for kind in ("clock", "processor", "driver", "worker", "Ray")}
            )
            took[engine][-1]["start"] = small["clock"]
            print(number, engine, {kind: round(value, 1) for kind, value in took[engine][-1].items()}, flush=True)
    print(f"{more} pairs more, {rounds} rounds")
    for engine, times in took.items():
        told = "; ".join(f"{kind} {Spread.ratio(times, took['local'], kind)}" for kind in ("clock", "processor"))
        rate = more / median(times, "clock")
        start = median(times, "start")
        print(f"{engine}: {rate:.1f} pairs/s; {start:.1f} s to start and for the small input; of local: {told}")


def memory(scratch: Path, rows: int) -> None:
    from pyterrier_rankdistillm import runs

    model = save_random(scratch / "tiny", TINY)
    docs = 100_000
    texts = [" ".join(WORDS[(n >> shift) % len(WORDS)] for shift in range(n % 7 + 3)) + f" d{n}" for n in range(docs)]
    pd.DataFrame({"docno": [f"d{n}" for n in range(docs)], "text": texts}).to_parquet(scratch / "texts.parquet")
    for size in (rows // 10, rows):
        queries = size // 100
        with runs.writer(scratch / f"{size}.parquet") as append:
            for start in range(0, queries, 1_000):
                places = [(n, rank) for n in range(start, min(start + 1_000, queries)) for rank in range(100)]
                append(
                    pd.DataFrame({
                        "qid": [f"q{n}" for n, _ in places],
                        "docno": [f"d{(n * 7919 + rank * 104_729) % docs}" for n, rank in places],
                        "score": [-rank for _, rank in places],
                        "query": [f"{WORDS[n % len(WORDS)]} {n}" for n, _ in places],
                    })
                )  # fmt: skip
        found = in_a_process(rerank, scratch / f"{size}.parquet", model, scratch / "texts.parquet", None, CORES, 1,
                             scratch / f"{size}.out.parquet")  # fmt: skip
        told = "; ".join(
            f"{role} {peak['peak']:.0f} MB, {peak['anonymous']:.0f} of them its own"
            for role, peak in found["peaks"].items()
        )
        took = f"{found['clock']:.0f} s, {found['processor']:.0f} s of processor"
        print(f"{size} rows, {CORES} actors: {took}; peaks: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0, help="of the speed measurement (default: none)")
    parser.add_argument("--pairs", type=int, default=3_200, help="of the large input (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=CORES, help="of the local engine (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=0, help="of the memory measurement (default: none)")
    args = parser.parse_args()
    describe()
    with tempfile.TemporaryDirectory() as scratch:
        if args.rounds:
            speed(Path(scratch), args.rounds, args.pairs, args.threads)
        if args.rows:
            memory(Path(scratch), args.rows)


if __name__ == "__main__":
    main()
