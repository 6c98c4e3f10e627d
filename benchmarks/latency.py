"""Seconds that a caller waits for ``rank()``: of a few passages and of many, cold and warm, alone and beside others.

    python benchmarks/latency.py --data ../shared/data/trec-dl-2019-pool --peer sentence-transformers=PYTHON \
        --peer openvino=PYTHON

One cross-encoder of MiniLM's size (6 x 384, random weights; ``--size base``: 12 x 768) ranks passages of BM25's ranking
for one query at a time. Each scorer is a process of its own. Cold: from the model's name to the first ranking, after
imports. Warm: every caller ranks one query after another, with other texts each time; p50 and p95 are of all calls of
all callers. Processor time is of the whole process, per call. Peers are Sentence Transformers' ``CrossEncoder.predict``
at its default batch size, with torch or with its OpenVINO backend.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scoring import load_pairs, make_family

SIZES = {"minilm": "minilm (6 x 384)", "base": "bert (12 x 768)"}
CALLS = {10: 24, 100: 8, 1000: 1}
"""Calls of one caller, by the number of passages."""

Rank = Callable[[str, list[str]], Any]


def opened(kind: str, folder: str) -> Rank:
    """A function that ranks texts for a query."""
    if kind.startswith("ours"):
        from pyterrier_rankdistillm import CrossEncoderReRanker

        return CrossEncoderReRanker(folder, device="cpu", dtype=kind.partition("-")[2] or "float32").rank
    import torch
    from sentence_transformers import CrossEncoder

    settings: dict[str, Any] = {"activation_fn": torch.nn.Identity(), "max_length": 512, "device": "cpu"}
    if kind == "openvino":
        settings |= {"backend": "openvino", "model_kwargs": {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}}
    model = CrossEncoder(folder, **settings)
    return lambda query, texts: model.predict([(query, text) for text in texts], show_progress_bar=False).argsort()


def work(kind: str, folder: str, threads: int) -> None:
    """Answers a line of requests (JSON: callers, and each one's queries and texts) with each call's seconds."""
    import torch

    torch.set_num_threads(threads)
    if kind.startswith("ours"):
        import pyterrier_rankdistillm.reranker  # noqa: F401
    else:
        import sentence_transformers  # noqa: F401
    answers, sys.stdout = sys.stdout, sys.stderr
    rank: Rank | None = None
    for line in sys.stdin:
        callers = json.loads(line)
        started, used = time.perf_counter(), time.process_time()
        rank = rank or opened(kind, folder)
        seconds: list[float] = []
        failed: list[BaseException] = []

        def call(requests: list[tuple[str, list[str]]], rank: Rank, seconds: list[float], failed: list[Any]) -> None:
            try:
                for query, texts in requests:
                    begun = time.perf_counter()
                    rank(query, texts)
                    seconds.append(time.perf_counter() - begun)
            except BaseException as error:
                failed.append(error)

        runs = [threading.Thread(target=call, args=(requests, rank, seconds, failed)) for requests in callers]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        if failed:
            raise failed[0]
        whole = time.perf_counter() - started
        answer = {"calls": seconds, "whole": whole, "cpu": time.process_time() - used}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A scorer in a process of its own."""

    def __init__(self, python: str, kind: str, folder: Path, threads: int) -> None:
        command = [python, __file__, "--worker", kind, str(folder), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, callers: list[list[tuple[str, list[str]]]]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(callers) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"A worker died; run it by hand to see why: {self.process.args}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def requests(pairs: list[list[str]], passages: int, calls: int, first: int) -> list[tuple[str, list[str]]]:
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
    pairs = load_pairs(args.data, 20, 60)
    kinds = [(kind, sys.executable) for kind in args.ours] + [tuple(peer.split("=", 1)) for peer in args.peer]
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_family(Path(scratch), SIZES[args.size])
        print("| scorer | passages | callers | calls | cold s | p50 s | p95 s | processor s a call |")
        print("|---|---|---|---|---|---|---|---|")
        for kind, python in kinds:
            for passages in args.passages:
                worker = Worker(python, kind, folder, args.threads)
                cold = worker.ask([requests(pairs, passages, 1, 0)])["whole"]
                for callers in args.callers:
                    calls = max(1, CALLS.get(passages, 8) // callers)
                    each = [requests(pairs, passages, calls, 1 + caller * calls) for caller in range(callers)]
                    answer = worker.ask(each)
                    times = sorted(answer["calls"])
                    p95 = times[min(len(times) - 1, round(0.95 * (len(times) - 1)))]
                    cells = f"{cold:.2f} | {statistics.median(times):.3f} | {p95:.3f}"
                    cpu = answer["cpu"] / len(times)
                    print(f"| {kind} | {passages} | {callers} | {len(times)} | {cells} | {cpu:.3f} |", flush=True)
                worker.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
