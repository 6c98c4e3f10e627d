"""Scoring on a GPU: pairs per second, time per query, memory, share of the card, base and large, every precision.

    pip install pyterrier-rankdistillm[test] sentence-transformers
    python benchmarks/gpu.py --output gpu

One command of at most five minutes: it runs the tests marked ``gpu`` first, needs no network and no data, and writes
``gpu.json`` and ``gpu.md``. Models are ELECTRA of base and large size with random weights; passages are words of the
demo collection in MS MARCO's lengths (log-normal, 56 words on average), 43 queries of 100. Each system scores all pairs
once to warm up, then in rounds that alternate between systems; figures are medians over rounds. The time per query is
that of ``rank`` with 100 passages. The share is of the bf16 (float32: fp32) matrix products that the card was measured
to do in the same run, counting the operations that the scores need. Beside it stand the paper's 0.139 s (base) and
0.215 s (large) per query of 100 by Lightning IR in bf16 (Schlatt et al., 2025; their card, not this one).

Sentence Transformers, where installed, scores the same weights at several batch sizes; its best counts. On a machine
without a GPU, or with ``--small``, all of it runs in miniature.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from measuring import alternated, needed_operations, processor, table_head, table_row

from pyterrier_rankdistillm import Checkpoint, MonoElectra
from pyterrier_rankdistillm.demo.dataset import DemoDataset
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder, EncoderConfig
from pyterrier_rankdistillm.scoring.tokenizer import Lengths

SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
SMALL = {"tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}}
PAPER = {"base": 0.139, "large": 0.215}
"""Seconds per query of 100 passages, Lightning IR in bf16."""
PRECISIONS = ["bfloat16", "float16", "tf32", "float32"]
ROUNDS, LATENCIES = 5, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu"), help="of .json and .md (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="in miniature, on whatever is there")
    parser.add_argument("--no-tests", action="store_true", help="without the tests marked gpu")
    parser.add_argument("--no-peers", action="store_true", help="without Sentence Transformers")
    parser.add_argument("--minutes", type=float, default=5.0, help="no new measurement after these (%(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    small = args.small or not torch.cuda.is_available()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
        "miniature": small, "tests": None if args.no_tests or small else run_tests(),
        "ceilings": {dtype: product_rate(dtype, device, 256 if small else 8192) for dtype in ("bfloat16", "float32")},
        "rows": [],
    }  # fmt: skip
    frame = made_frame(queries=2 if small else 43, depth=5 if small else 100)
    for size, shape in (SMALL if small else SIZES).items():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = made_checkpoint(shape, Path(folder) / size)
            systems = our_systems(checkpoint, device)
            if not args.no_peers:
                systems |= peers(checkpoint, device)
            report["rows"] += measured(size, checkpoint, systems, frame, device, report["ceilings"], small)
        if time.monotonic() - started > 60 * args.minutes:
            report["stopped"] = f"after {size}: {args.minutes:g} minutes were over"
            break
    report["seconds"] = round(time.monotonic() - started)
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))
    if report["tests"] and report["tests"]["exit"]:
        sys.exit("The tests marked gpu failed; the figures above may be of wrong scores.")


def run_tests() -> dict[str, Any]:
    """Runs the tests marked ``gpu``."""
    tests = Path(__file__).resolve().parent.parent / "tests"
    marked = [str(file) for file in sorted(tests.rglob("test_*.py")) if "mark.gpu" in file.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *marked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests.parent)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    return {"exit": done.returncode, "summary": done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr}


def made_frame(queries: int, depth: int) -> pd.DataFrame:
    """A result frame of the demo collection's words, in MS MARCO's lengths."""
    dataset = DemoDataset()
    words = " ".join(document["text"] for document in dataset.get_corpus_iter(verbose=False)).split()
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(math.log(50), 0.45, queries * depth)), 8, 250).astype(int)
    starts = random.integers(0, len(words) - 250, queries * depth)
    texts = [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]
    topics = dataset.get_topics()["query"].tolist()
    rows = [
        {"qid": str(q), "query": topics[q % len(topics)], "docno": f"{q}-{n}", "text": texts[q * depth + n]}
        for q in range(queries)
        for n in range(depth)
    ]
    return pd.DataFrame(rows)


def made_checkpoint(shape: dict[str, int], folder: Path) -> Path:
    """An ELECTRA for sequence classification with random weights, in transformers' format."""
    demo = Checkpoint.open("rankdistillm:demo")
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=30522, embedding_size=shape["hidden_size"], max_position_embeddings=512, **shape)
    model = CrossEncoder(config, "classification").eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02 if "embeddings" in name else 0.04)
    tokenizer = demo.tokenizer.with_lengths(Lengths(query=None, doc=None, pair=512))
    return Checkpoint(model, tokenizer, "random weights").save(folder, format="transformers")


def our_systems(checkpoint: Path, device: str) -> dict[str, Callable[[pd.DataFrame], np.ndarray[Any, Any]]]:
    """This package in every precision that the device has."""
    systems = {}
    for dtype in PRECISIONS:
        try:
            reranker = MonoElectra(checkpoint, device=device, dtype=dtype)  # type: ignore[arg-type]
            reranker.rank("cat", ["the cat sat"])
        except ValueError as error:
            print(f"ours, {dtype}: {error}", flush=True)
            continue

        def scores(frame: pd.DataFrame, reranker: MonoElectra = reranker) -> np.ndarray[Any, Any]:
            return reranker.transform(frame).set_index("docno").loc[frame["docno"], "score"].to_numpy()

        systems[f"ours, {dtype}"] = scores
    return systems


def peers(checkpoint: Path, device: str) -> dict[str, Callable[[pd.DataFrame], np.ndarray[Any, Any]]]:
    """Sentence Transformers at several batch sizes."""
    try:
        from sentence_transformers import CrossEncoder as Peer
    except ImportError:
        return {}
    systems = {}
    for dtype in ("bfloat16", "float32") if device == "cuda" else ("float32",):
        model = Peer(str(checkpoint), device=device, model_kwargs={"torch_dtype": dtype}, max_length=512)
        for size in (128, 512) if device == "cuda" else (32,):

            def scores(frame: pd.DataFrame, model: Any = model, size: int = size) -> np.ndarray[Any, Any]:
                pairs = list(zip(frame["query"], frame["text"], strict=True))
                identity = torch.nn.Identity()
                return np.asarray(
                    model.predict(pairs, batch_size=size, activation_fn=identity, show_progress_bar=False), float
                )

            systems[f"Sentence Transformers, {dtype}, batches of {size}"] = scores
    return systems


def measured(
    size: str, checkpoint: Path, systems: dict[str, Any], frame: pd.DataFrame, device: str,
    ceilings: dict[str, float], small: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per system."""
    one = frame[frame["qid"] == "0"]
    operations = needed_operations(checkpoint, frame["query"].tolist(), frame["text"].tolist())
    memory: dict[str, float] = {}
    exact: np.ndarray[Any, Any] | None = None
    apart: dict[str, float] = {}
    for name in [*(name for name in systems if name == "ours, float32"), *systems]:  # float32 first, for comparison
        with peak_memory(device) as peak, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = systems[name](frame)
        memory[name] = peak["gb"]
        exact = scores if exact is None else exact
        apart[name] = float(np.abs(scores - exact).max())
    calls = [partial(timed, partial(system, frame), device) for system in systems.values()]
    seconds = alternated(1 if small else ROUNDS, calls)
    rows = []
    for (name, system), took_each in zip(systems.items(), seconds, strict=True):
        latency = statistics.median(
            timed(lambda system=system: system(one), device) for _ in range(3 if small else LATENCIES)
        )
        took = statistics.median(took_each)
        ceiling = ceilings["float32" if name.split(", ")[1] == "float32" else "bfloat16"]
        rows.append(
            {
                "size": size, "system": name, "pairs per second": round(len(frame) / took, 1),
                "seconds per query of 100": round(latency * 100 / len(one), 5),
                "seconds per query in a run": round(took * 100 / len(frame), 5), "memory, GB": round(memory[name], 2),
                "share of the card": round(operations / took / ceiling, 3), "largest difference": round(apart[name], 5),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def product_rate(dtype: str, device: str, size: int) -> float:
    """Operations per second of a large matrix product on random numbers: the median of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    times = [timed(lambda: a @ b, device) for _ in range(13)][3:]
    return 2.0 * size**3 / statistics.median(times)


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of a call, until the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[dict[str, float]]:
    """The most memory of the device that was used at a time, in GB."""
    found = {"gb": 0.0}
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    yield found
    if device == "cuda":
        found["gb"] = (torch.cuda.max_memory_allocated() - before) / 1e9


def markdown(report: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    ceilings = ", ".join(f"{dtype} {rate / 1e12:,.1f} TFLOP/s" for dtype, rate in report["ceilings"].items())
    columns = ("pairs/s", "s per query of 100, alone", "in a run", "paper", "GB", "share of the card", "off by at most")
    lines = [
        f"{report['device']}, torch {report['torch']}, transformers {report['transformers']}, "
        f"Python {report['python']}; measured products: {ceilings}.",
        "",
        table_head("", *columns),
    ]
    for row in report["rows"]:
        paper = f"{PAPER[row['size']]}" if row["size"] in PAPER and row["system"] == "ours, bfloat16" else ""
        lines.append(
            table_row(
                f"{row['size']}, {row['system']}", f"{row['pairs per second']:,.0f}",
                f"{row['seconds per query of 100']:.4f}", f"{row['seconds per query in a run']:.4f}", paper,
                f"{row['memory, GB']:.2f}", f"{row['share of the card']:.0%}", f"{row['largest difference']:.5f}",
            )
        )  # fmt: skip
    if report["tests"]:
        lines += ["", f"Tests marked `gpu`: {report['tests']['summary']}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
