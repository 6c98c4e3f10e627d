"""What scoring costs beside the encoder: start-up, memory of a large frame, and bookkeeping.

    python benchmarks/large_frame.py --rows 1000000

Prints what importing the package adds to importing torch and PyTerrier; what opening a base-size checkpoint and scoring
with it adds to the peak of resident memory; and the time and the memory of re-ranking a frame of many short, distinct
texts with a tiny checkpoint. That checkpoint's forward pass is timed too and taken off: what is left, per row, is what
the frame, the tokenizer, the plan and the batches cost, to be compared with a row of a base-size encoder. Each part
runs in a process of its own, so that peaks are its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import in_a_process, memory_mb
from scoring import BASE

TINY = {
    "vocab_size": 30522,
    "embedding_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "max_position_embeddings": 64,
}
WORDS = ["cat", "dog", "moon", "rain", "snow", "bread", "garden", "water", "river", "stone", "light", "music", "winter"]


def import_seconds() -> dict[str, float]:
    """Seconds that the package's import adds, and that its first name adds (which imports what it needs)."""
    import pyterrier  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    started = time.perf_counter()
    import pyterrier_rankdistillm

    imported = time.perf_counter()
    _ = pyterrier_rankdistillm.MonoElectra
    return {"import": imported - started, "MonoElectra": time.perf_counter() - imported}


def opening(checkpoint: str) -> dict[str, float]:
    """Peak memory (MB) that opening a checkpoint adds, and then scoring with it."""
    import torch

    from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
    from pyterrier_rankdistillm.scoring.scorer import Scorer

    torch.set_num_threads(2)
    before = memory_mb()["peak"]
    opened = Checkpoint.open(checkpoint)
    after = memory_mb()["peak"]
    Scorer(opened).score(["a cat"] * 8, [f"{row} cats " * 20 for row in range(8)])
    return {"open": after - before, "score": memory_mb()["peak"] - before}


def many_rows(checkpoint: str, rows: int) -> dict[str, float]:
    """Processor time and peak memory of re-ranking a frame of distinct short texts, 1,000 per query."""
    import pandas as pd
    import torch

    from pyterrier_rankdistillm import MonoElectra

    torch.set_num_threads(2)
    reranker = MonoElectra(checkpoint, device="cpu")
    (place,) = reranker.scorer.places
    forward = place.encoder.forward
    inside: list[float] = []  # processor time of each batch, which one thread computes

    def timed(*inputs: Any) -> Any:
        started = time.thread_time()
        scores = forward(*inputs)
        inside.append(time.thread_time() - started)
        return scores

    place.encoder.forward = timed  # type: ignore[method-assign]
    frame = pd.DataFrame(
        {
            "qid": [str(row // 1000) for row in range(rows)],
            "query": [f"{WORDS[row // 1000 % len(WORDS)]} {row // 1000}" for row in range(rows)],
            "docno": [f"d{row}" for row in range(rows)],
            "text": [
                " ".join(WORDS[(row >> shift) % len(WORDS)] for shift in range(row % 7 + 3)) for row in range(rows)
            ],
        }
    )
    frame["text"] += frame["docno"]  # distinct
    memory = frame.memory_usage(deep=True).sum() / 2**20
    before = memory_mb()["peak"]
    started = time.process_time()
    out = reranker(frame)
    seconds = time.process_time() - started
    assert len(out) == rows
    return {
        "seconds": seconds,
        "in the encoder": sum(inside),
        "frame MB": memory,
        "added MB": memory_mb()["peak"] - before,
    }


def save_random(folder: Path, shape: dict[str, int]) -> Path:
    """A checkpoint with random weights and the demo's tokenizer."""
    import torch

    from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
    from pyterrier_rankdistillm.scoring.encoder import CrossEncoder, EncoderConfig
    from pyterrier_rankdistillm.scoring.tokenizer import Lengths

    demo = Checkpoint.open("rankdistillm:demo")
    model = CrossEncoder(EncoderConfig(**shape)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    lengths = Lengths(query=16, doc=32, pair=shape["max_position_embeddings"])
    return Checkpoint(model, demo.tokenizer.with_lengths(lengths), "random weights").save(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5, help="of the imports (default: %(default)s)")
    args = parser.parse_args()
    imports = [in_a_process(import_seconds) for _ in range(args.rounds)]
    for what in imports[0]:
        print(
            f"{what}: {statistics.median(times[what] for times in imports):.3f} s beside torch, transformers, PyTerrier"
        )
    with tempfile.TemporaryDirectory() as scratch:
        base = save_random(Path(scratch) / "base", BASE)
        size = (base / "model.safetensors").stat().st_size / 2**20
        for what, added in in_a_process(opening, base).items():
            print(f"{what}: {added:.0f} MB of peak memory, {added / size:.2f} times the file's {size:.0f} MB")
        tiny = save_random(Path(scratch) / "tiny", TINY)
        for rows in (args.rows // 10, args.rows):
            cost = in_a_process(many_rows, tiny, rows)
            own = (cost["seconds"] - cost["in the encoder"]) / rows
            print(
                f"{rows} rows: {cost['seconds']:.0f} s of processor time, {cost['in the encoder']:.0f} of them in the "
                f"encoder; {own * 1e6:.0f} microseconds per row beside it; the frame is {cost['frame MB']:.0f} MB, the "
                f"peak rose by {cost['added MB']:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
