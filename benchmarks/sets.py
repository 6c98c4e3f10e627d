"""The Set-Encoder beside Lightning IR's and beside monoELECTRA: time of scoring, memory of training.

    python benchmarks/sets.py --data ../shared/data/trec-dl-2019-pool --peer PYTHON --threads 1

Speed: one set encoder of base size (12 x 768) with random weights, saved in Lightning IR's format, scores the same
lists (BM25's) here and in Lightning IR, ``PYTHON``'s, which encodes a list as one batch; the cross-encoder of the same
weights scores their pairs. Each is a process of its own; rounds are alternated, and ratios are medians of the
per-round ratios, of processor time too, since that does not count the time of other programs. Scores must agree to
2e-5. Memory: as in ``training.py``, a set encoder of MiniLM's size is distilled on lists of 25, 50 and 100 passages.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import training
from measuring import Spread, Worker, alternated, describe, largest_difference, table_head, table_row
from scoring import TOLERANCE, answering, load_pairs, make_checkpoints


def as_set_encoder(checkpoint: Path, target: Path) -> Path:
    from pyterrier_rankdistillm import Checkpoint

    return Checkpoint.open(checkpoint).as_set_encoder(depth=100).save(target)


def measure_speed(args: argparse.Namespace, scratch: Path) -> None:
    linear = make_checkpoints(scratch)["linear"]
    sets = as_set_encoder(linear, scratch / "sets")
    pairs = load_pairs(args.data, args.queries, args.depth)
    scorers = [
        ("this package, Set-Encoder", sys.executable, "sets", sets, None),
        ("this package, monoELECTRA", sys.executable, "ours", linear, None),
    ]
    if args.peer:
        scorers.append(("Lightning IR, Set-Encoder", args.peer, "lightning-ir", sets, sys.maxsize))
    print(f"{len(pairs)} passages of {args.queries} queries, {args.rounds} alternated rounds, {args.threads} threads\n")
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(name, answering, kind, folder, batch, args.threads, python=python))
            for name, python, kind, folder, batch in scorers
        ]
        scores = [worker.ask(pairs)["scores"] for worker in workers]  # to warm up, and to compare
        rounds = alternated(args.rounds, [partial(worker.ask, pairs) for worker in workers])
    print(table_head("", "time / the Set-Encoder's here", "processor time", "peak MB", "largest difference"))
    for (name, *_), found, answers in zip(scorers, scores, rounds, strict=True):
        ratios = [Spread.ratio(answers, rounds[0], what) for what in ("seconds", "cpu")]
        apart = largest_difference(scores[0], found)
        print(table_row(name, *ratios, f"{answers[-1]['peak_mb']:,.0f}", f"{apart:.1e}"))
    if args.peer:
        agrees = largest_difference(scores[0], scores[2]) <= TOLERANCE
        print("agrees with Lightning IR" if agrees else "DISAGREES with Lightning IR")


def measure_memory(args: argparse.Namespace, scratch: Path) -> None:
    plain = training.make_checkpoint(scratch / "memory", "linear", 0.1)
    sets = as_set_encoder(plain, scratch / "memory-sets")
    lists = training.load_lists(args.data, max(args.depths), 2)
    print("\n" + table_head("memory that 2 steps take, MB", *(f"{depth} passages" for depth in args.depths)))
    for name, checkpoint, settings in (
        ("Set-Encoder, a whole list fits in memory_tokens", sets, {}),
        ("Set-Encoder, memory_tokens=2048", sets, {"memory_tokens": 2048}),
        ("monoELECTRA, memory_tokens=2048", plain, {"memory_tokens": 2048}),
    ):
        grown = []
        for depth in args.depths:
            some = [(query, texts[:depth]) for query, texts in lists]
            with Worker(name, training.trainer, "ours", settings, args.threads) as worker:
                grown.append(worker.ask([str(checkpoint), some, len(some)])["grown_mb"])
        print(table_row(name, *(f"{megabytes:,.0f}" for megabytes in grown)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the TREC DL 2019 pool (default: the demo collection)")
    parser.add_argument("--peer", help="a Python with Lightning IR 0.0.6")
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--depths", type=int, nargs="*", default=[25, 50, 100], help="of lists to train on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["speed", "memory"])
    args = parser.parse_args()
    describe([args.peer] if args.peer else [])
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "memory":
            measure_speed(args, Path(folder))
        if args.only != "speed":
            measure_memory(args, Path(folder))


if __name__ == "__main__":
    main()
