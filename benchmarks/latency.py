"""Seconds that a caller waits for ``rank()``: of a few passages and of many, cold and warm, alone and beside others.

    python benchmarks/latency.py --data ../shared/data/trec-dl-2019-pool --peer sentence-transformers=PYTHON \
        --peer openvino=PYTHON

One cross-encoder of MiniLM's size (6 x 384, random weights; ``--size base``: 12 x 768) ranks passages of BM25's ranking
for one query at a time. Each scorer is a process of its own. Cold: from the model's name to the first ranking, after
imports. Warm: every caller ranks one query after another, with other texts each time; p50 and p95 are of all calls of
all callers. Processor time is of the whole process, per call. Peers are Sentence Transformers' ``CrossEncoder.predict``
at its default batch size, with torch or with its OpenVINO backend (converted before: no start converts a model).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import Clock, Worker, WorkerError, describe, in_a_process, table_head, table_row
from scoring import load_pairs, make_family, precision

SIZES = {"minilm": "minilm (6 x 384)", "base": "bert (12 x 768)"}
CALLS = {10: 24, 100: 8, 1000: 1}
"""Calls of one caller, by the number of passages."""

Rank = Callable[[str, list[str]], Any]


def opened(kind: str, folder: str) -> Rank:
    """A function that ranks texts for a query."""
    if kind.startswith("ours"):
        from pyterrier_rankdistillm import CrossEncoderReRanker

        return CrossEncoderReRanker(folder, device="cpu", dtype=precision(kind)).rank
    import torch
    from sentence_transformers import CrossEncoder

    settings: dict[str, Any] = {"activation_fn": torch.nn.Identity(), "max_length": 512, "device": "cpu"}
    if kind == "openvino":
        settings |= {"backend": "openvino", "model_kwargs": {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}}
    model = CrossEncoder(folder, **settings)
    return lambda query, texts: model.predict([(query, text) for text in texts], show_progress_bar=False).argsort()


Requests = list[tuple[str, list[str]]]
"""A caller's: queries, each with its texts."""


def caller(kind: str, folder: str, threads: int) -> Callable[[list[Requests]], dict[str, Any]]:
    """Answers what all callers ask with each call's seconds, and the time of all; the first time opens the model."""
    import torch

    torch.set_num_threads(threads)
    if kind.startswith("ours"):
        import pyterrier_rankdistillm.reranker  # noqa: F401
    else:
        import sentence_transformers  # noqa: F401
    rank: Rank | None = None

    def answer(callers: list[Requests]) -> dict[str, Any]:
        nonlocal rank
        clock = Clock()
        ranked = rank = rank or opened(kind, folder)
        calls: list[float] = []
        failed: list[BaseException] = []

        def call(requests: Requests) -> None:
            try:
                for query, texts in requests:
                    begun = time.perf_counter()
                    ranked(query, texts)
                    calls.append(time.perf_counter() - begun)
            except BaseException as error:
                failed.append(error)

        runs = [threading.Thread(target=call, args=(requests,)) for requests in callers]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        if failed:
            raise failed[0]
        return {"calls": calls, **clock.read()}

    return answer


def convert(folder: str, target: str) -> None:
    """Saves a model for OpenVINO as Sentence Transformers does, so that a cold start does not convert it."""
    from sentence_transformers import CrossEncoder

    CrossEncoder(folder, backend="openvino", device="cpu").save_pretrained(target)


def requests(pairs: list[list[str]], passages: int, calls: int, first: int) -> Requests:
    """Queries with their texts; no two have the same."""
    made = []
    for number in range(first, first + calls):
        query = pairs[number * 37 % len(pairs)][0]
        texts = [f"{pairs[(number * 101 + row * 7) % len(pairs)][1]} {number}" for row in range(passages)]
        made.append((query, texts))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the TREC DL 2019 pool (default: the demo collection)")
    parser.add_argument("--peer", action="append", default=[], metavar="sentence-transformers|openvino=PYTHON")
    parser.add_argument("--size", choices=SIZES, default="minilm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passages", type=int, nargs="+", default=list(CALLS))
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--ours", nargs="+", default=["ours", "ours-bfloat16", "ours-int8"])
    args = parser.parse_args()
    describe(peer.partition("=")[2] for peer in args.peer)
    print(f"{args.size}, {args.threads} threads\n")
    pairs = load_pairs(args.data, 20, 60)
    kinds = [(kind, sys.executable) for kind in args.ours] + [tuple(peer.split("=", 1)) for peer in args.peer]
    with tempfile.TemporaryDirectory() as scratch:
        saved = make_family(Path(scratch) / "model", SIZES[args.size])
        print(
            table_head("scorer", "passages", "callers", "calls", "cold s", "p50 s", "p95 s", "processor s a call"),
            flush=True,
        )
        for kind, python in kinds:
            try:
                folder = saved
                if kind == "openvino":
                    in_a_process(convert, saved, folder := Path(scratch) / "openvino", python=python)
                for passages in args.passages:
                    with Worker(kind, caller, kind, folder, args.threads, python=python) as worker:
                        measure(args, worker, pairs, passages)
            except WorkerError as error:
                if python == sys.executable:
                    raise
                error.left_out()


def measure(args: argparse.Namespace, worker: Worker, pairs: list[list[str]], passages: int) -> None:
    """Prints a row for each number of callers."""
    cold = worker.ask([requests(pairs, passages, 1, 0)])["seconds"]
    for callers in args.callers:
        calls = max(1, CALLS.get(passages, 8) // callers)
        each = [requests(pairs, passages, calls, 1 + number * calls) for number in range(callers)]
        answer = worker.ask(each)
        times = sorted(answer["calls"])
        p95 = times[round(0.95 * (len(times) - 1))]
        seconds = (f"{cold:.2f}", f"{statistics.median(times):.3f}", f"{p95:.3f}")
        cpu = f"{answer['cpu'] / len(times):.3f}"
        print(table_row(worker.name, passages, callers, len(times), *seconds, cpu), flush=True)


if __name__ == "__main__":
    main()
