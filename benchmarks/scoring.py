"""Pairs per second of this package and its peers: the same weights, the same pairs, the same machine.

    python benchmarks/scoring.py --data ../shared/data/trec-dl-2019-pool \
        --peer lightning-ir=PYTHON --peer pyterrier-dr=PYTHON --peer sentence-transformers=PYTHON \
        --peer onnxruntime=PYTHON --peer openvino:1024=PYTHON
    python benchmarks/scoring.py --precisions PYTHON --data ../shared/data/trec-dl-2019-pool
    python benchmarks/scoring.py --family all --peer sentence-transformers=PYTHON \
        --data ../shared/data/trec-dl-2019-pool

One ELECTRA of base size (12 x 768) with random weights is saved in the format of each scorer. Every scorer is a worker
process with an interpreter of its own (Lightning IR needs transformers below 5). In each round every scorer scores
all pairs once; a ratio is the median of the per-round ratios, so that a machine whose speed drifts decides nothing, and
ratios are of processor time too, which a machine that others use disturbs less. Peers run at several batch sizes, the
first of which is their default, or at those that are named after a colon. float32 scores must agree to 2e-5; those of
bfloat16 and int8 are another model's, their difference is printed. The ceiling is what this machine's fp32 matrix
product could do with the operations that a pair needs, measured in the same rounds.

With ``--precisions``, this package in float32, bfloat16 and int8 is measured beside OpenVINO in the same three and ONNX
Runtime in float32 and int8 (on x86-64 it has no bfloat16), all in batches of 512 tokens; what that environment lacks is
left out. ONNX Runtime needs the package onnx there, int8 of OpenVINO nncf. A peer's ratio is to this package in the
same precision. int8 is the peers' own: ONNX Runtime's is dynamic, OpenVINO's is calibrated with the first pairs.

With ``--family``, one model of each family at its usual size (random weights, transformers' own format, the demo's
WordPiece tokenizer for all) is scored by this package and by Sentence Transformers at several batch sizes, of which the
best counts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measuring import (
    Clock,
    Spread,
    Worker,
    WorkerError,
    alternated,
    describe,
    largest_difference,
    median,
    memory_mb,
    needed_operations,
    table_head,
    table_row,
)

BASE = {
    "vocab_size": 30522,
    "embedding_size": 768,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
TOKENS = [1024, 256, 512, 2048]
"""Of batches that are sorted by length, as one would write it."""
SCORERS: dict[str, tuple[str, list[int | None]]] = {
    # Kind: its checkpoint's head, and batch sizes.
    **dict.fromkeys(("ours", "ours-bfloat16", "ours-int8"), ("linear", [None])),
    "lightning-ir": ("linear", [100, 1, 4, 8, 16]),
    "pyterrier-dr": ("linear", [16]),
    "sentence-transformers": ("classification", [32, 1, 4, 8]),
    **dict.fromkeys(
        ("onnxruntime", "onnxruntime-int8", "openvino", "openvino-bfloat16", "openvino-int8"),
        ("classification", TOKENS),
    ),
}
TOLERANCE = 2e-5


def precision(kind: str) -> str:
    """What a kind of scorer computes in."""
    last = kind.rpartition("-")[2]
    return last if last in ("bfloat16", "int8") else "float32"


# --- workers: one scorer each, in a process of its own ----------------------------------------------------------------


def open_scorer(kind: str, checkpoint: str, batch: Any) -> Callable[[list[list[str]]], list[float]]:
    """A function from pairs to scores."""
    if kind == "sets":
        from pyterrier_rankdistillm import SetEncoderReRanker

        lists = SetEncoderReRanker(checkpoint, device="cpu").scorer
        return lambda pairs: lists.score_lists(*zip(*by_query(pairs), strict=True)).scores.tolist()
    if kind.startswith("ours"):
        from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
        from pyterrier_rankdistillm.scoring.scorer import Scorer

        scorer = Scorer(Checkpoint.open(checkpoint), device="cpu", dtype=precision(kind), batch_tokens=batch)
        return lambda pairs: scorer.score([q for q, _ in pairs], [d for _, d in pairs]).scores.tolist()
    if kind == "lightning-ir":
        import torch
        from lightning_ir import CrossEncoderModule

        module = CrossEncoderModule(checkpoint).eval()

        def score(pairs: list[list[str]]) -> list[float]:
            scores: list[float] = []
            with torch.inference_mode():
                for query, texts in by_query(pairs):
                    for start in range(0, len(texts), batch):
                        scores += module.score([query], [texts[start : start + batch]]).scores.view(-1).tolist()
            return scores

        return score
    if kind == "pyterrier-dr":
        import pandas as pd
        from pyterrier_dr import LightningIRMonoScorer

        transformer = LightningIRMonoScorer(checkpoint, batch_size=batch, verbose=False)

        def rerank(pairs: list[list[str]]) -> list[float]:
            frame = pd.DataFrame(pairs, columns=["query", "text"])
            frame["qid"] = frame["query"]
            frame["docno"] = [str(row) for row in range(len(frame))]
            scores = transformer(frame).set_index("docno")["score"]
            return [float(scores[str(row)]) for row in range(len(pairs))]

        return rerank
    if kind == "sentence-transformers":
        import torch
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(checkpoint, max_length=512, activation_fn=torch.nn.Identity(), device="cpu")
        return lambda pairs: model.predict(pairs, batch_size=batch, show_progress_bar=False).tolist()
    engine, _, _ = kind.partition("-")
    if engine in ENGINES:
        return by_length(ENGINES[engine](checkpoint, precision(kind)), checkpoint, batch)
    raise ValueError(f"No scorer is called {kind!r}.")


INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""In the order in which models of transformers take them."""
Run = Callable[[list[dict[str, Any]]], list[Any]]
"""From padded batches (arrays of shape (pairs, tokens), by their names in ``INPUTS``) to logits, shape (pairs, 1)."""


def by_length(run: Run, checkpoint: str, batch_tokens: int) -> Callable[[list[list[str]]], list[float]]:
    """Pairs are sorted by length and batched under a token budget."""
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def score(pairs: list[list[str]]) -> list[float]:
        encoded = tokenizer(pairs, truncation=True, max_length=512)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        left, batches = np.argsort(-lengths), []
        while len(left):
            batch, left = np.split(left, [max(1, batch_tokens // lengths[left[0]])])
            batches.append(batch)
        padded = [
            dict(tokenizer.pad({name: [ids[i] for i in batch] for name, ids in encoded.items()}, return_tensors="np"))
            for batch in batches
        ]
        scores = np.empty(len(pairs))
        for batch, logits in zip(batches, run(padded), strict=True):
            scores[batch] = logits[:, 0]
        return scores.tolist()

    return score


def model_and_example(checkpoint: str) -> tuple[Any, dict[str, Any]]:
    """The model of transformers, and two pairs as it takes them, to be traced with."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager").eval()
    pairs = [["a query", "a text"], ["a query", "a longer text"]]
    example = AutoTokenizer.from_pretrained(checkpoint)(pairs, padding=True, return_tensors="pt")
    return model, {name: example[name] for name in INPUTS if name in example}


def onnxruntime_run(checkpoint: str, dtype: str) -> Run:
    """ONNX Runtime with transformers' model; int8: its weights, and its inputs as they come."""
    import onnxruntime
    import torch

    model, example = model_and_example(checkpoint)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        file = f"{scratch}/model.onnx"
        axes = {name: {0: "batch", 1: "tokens"} for name in example}
        torch.onnx.export(
            model, tuple(example.values()), file, dynamo=False, opset_version=17,
            input_names=list(example), output_names=["logits"], dynamic_axes=axes,
        )  # fmt: skip
        if dtype == "int8":
            from onnxruntime.quantization import quantize_dynamic

            quantize_dynamic(file, file := f"{scratch}/int8.onnx", per_channel=True)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda batches: [session.run(None, inputs)[0] for inputs in batches]


def openvino_run(checkpoint: str, dtype: str) -> Run:
    """OpenVINO with transformers' model; int8: weights and inputs, by nncf, calibrated with the first pairs."""
    import openvino
    import torch

    model, example = model_and_example(checkpoint)
    converted = openvino.convert_model(model, example_input=example)
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
    }
    core = openvino.Core()
    compiled = None if dtype == "int8" else core.compile_model(converted, "CPU", settings)

    def run(batches: list[dict[str, Any]]) -> list[Any]:
        nonlocal compiled
        if compiled is None:
            import nncf

            quantised = nncf.quantize(converted, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER)
            compiled = core.compile_model(quantised, "CPU", settings)
        return [compiled(inputs)[0] for inputs in batches]

    return run


ENGINES = {"onnxruntime": onnxruntime_run, "openvino": openvino_run}


def by_query(pairs: list[list[str]]) -> list[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for query, text in pairs:
        grouped.setdefault(query, []).append(text)
    return list(grouped.items())


def answering(kind: str, checkpoint: str, batch: int | None, threads: int) -> Callable[[list[list[str]]], Any]:
    """Answers pairs with scores, what they took and the peak of memory."""
    import torch

    torch.set_num_threads(threads)
    score = open_scorer(kind, checkpoint, batch)

    def answer(pairs: list[list[str]]) -> dict[str, Any]:
        clock = Clock()
        scores = score(pairs)
        return {**clock.read(), "scores": scores, "peak_mb": memory_mb()["peak"]}

    return answer


# --- families ---------------------------------------------------------------------------------------------------------

_12x768 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_ROBERTA = {**_12x768, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm (6 x 384)": (
        "BertConfig",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
    "bert (12 x 768)": ("BertConfig", _12x768),
    "electra (12 x 768)": ("ElectraConfig", {**_12x768, "embedding_size": 768}),
    "roberta (12 x 768)": ("RobertaConfig", _ROBERTA),
    "xlm-roberta (12 x 768)": ("XLMRobertaConfig", _ROBERTA),
    "distilbert (6 x 768)": ("DistilBertConfig", {}),
    "modernbert (22 x 768)": ("ModernBertConfig", {"pad_token_id": 0}),
    "deberta-v3 (12 x 768)": (
        "DebertaV2Config",
        {
            **_12x768, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 256,
            "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "type_vocab_size": 0,
        },
    ),
    "albert (12 x 768)": ("AlbertConfig", {**_12x768, "embedding_size": 128}),
}  # fmt: skip


def make_family(folder: Path, name: str) -> Path:
    """A model of a family with random weights, saved by transformers, with the demo checkpoint's tokenizer."""
    import torch
    import transformers

    from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint

    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(vocab_size=30522, num_labels=1, **settings)
    model = getattr(transformers, kind.replace("Config", "ForSequenceClassification"))(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02 if "embeddings" in parameter_name else 0.05)
    model.save_pretrained(folder)
    Checkpoint.open("rankdistillm:demo").tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    typed = kind in ("BertConfig", "ElectraConfig", "AlbertConfig")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "pad_token": "[PAD]",
        "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]",
        "model_input_names": ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"],
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


# --- what is measured -------------------------------------------------------------------------------------------------


def make_checkpoints(folder: Path) -> dict[str, Path]:
    """The same random encoder under a linear head (Lightning IR's format) and a classification head."""
    import torch

    from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
    from pyterrier_rankdistillm.scoring.encoder import CrossEncoder, EncoderConfig
    from pyterrier_rankdistillm.scoring.tokenizer import Lengths

    demo = Checkpoint.open("rankdistillm:demo")  # for its tokenizer: uncased WordPiece, 30,522 tokens
    lengths = Lengths(query=32, doc=256, pair=512)
    torch.manual_seed(0)
    encoder: CrossEncoder | None = None
    paths = {}
    for kind in ("linear", "classification"):
        model = CrossEncoder(EncoderConfig(**BASE), kind)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.02 if "embeddings" in name else 0.05)
        if encoder is not None:
            model.load_state_dict({n: t for n, t in encoder.state_dict().items() if n != "linear.weight"}, strict=False)
        encoder = model
        source = "random weights, benchmarks/scoring.py"
        paths[kind] = Checkpoint(model.eval(), demo.tokenizer.with_lengths(lengths), source).save(folder / kind)
    return paths


def load_pairs(data: Path | None, queries: int, depth: int) -> list[list[str]]:
    """Real pairs: BM25's ranking of a few judged queries, or the demo collection's."""
    import pyterrier as pt

    if data is None:
        dataset = pt.get_dataset("rankdistillm:demo")
        frame = dataset.text_loader()(dataset.get_results())
        return frame[["query", "text"]].to_numpy().tolist()[: queries * depth]
    run = condensed_run(data, depth)
    chosen = run[run["qid"].isin(sorted(run["qid"].unique())[:queries])]
    return chosen[["query", "text"]].to_numpy().tolist()


def condensed_run(data: Path, depth: int) -> Any:
    """BM25's top documents that have text in the pool; columns qid, query, docno, text."""
    import pyterrier as pt

    with gzip.open(data / "passages.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = {row["docno"]: row["text"] for row in map(json.loads, file)}
    topics = dict(line.split("\t", 1) for line in (data / "queries.tsv").read_text(encoding="utf-8").splitlines())
    year = data.name.removesuffix("-pool")
    run = pt.io.read_results(str(data.parent / "trec-dl-runs" / f"bm25-pyserini.{year}.run.gz"))
    run = run.sort_values(["qid", "score", "docno"], ascending=[True, False, False]).groupby("qid").head(depth)
    run = run[run["docno"].isin(texts) & run["qid"].isin(topics)]
    return run.assign(query=run["qid"].map(topics), text=run["docno"].map(texts))


def matrix_product_rate(threads: int) -> float:
    """fp32 operations per second of a large matrix product: the best of ten, by MKL or oneDNN."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 768), torch.randn(3072, 768)
    packed = torch.ops.mkldnn._reorder_linear_weight(b, None)
    products = (lambda: a @ b.T, lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""))
    best = float("inf")
    for product in products * 10:
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return 2 * 1024 * 768 * 3072 / best


@dataclass
class Measured:
    """A scorer, and what was measured of it.

    Args:
        apart: The largest difference of its scores to this package's in float32.
        rounds: Its answers.
    """

    name: str
    kind: str
    apart: float
    rounds: list[dict[str, Any]]


def named_scorers(given: list[str]) -> Iterator[tuple[str, str, str, int | None]]:
    """Name, kind, interpreter and batch size of each scorer, from ``NAME[:BATCH,...]=PYTHON``."""
    for named in given:
        label, _, python = named.partition("=")
        kind, _, batches = label.partition(":")
        if kind not in SCORERS or not python:
            raise SystemExit(f"A scorer must be NAME[:BATCH,...]=PYTHON, got {named!r}. Names: {', '.join(SCORERS)}.")
        for batch in [int(batch) for batch in batches.split(",")] if batches else SCORERS[kind][1]:
            yield kind if batch is None else f"{kind}, {batch} a batch", kind, python, batch


def measured(
    args: argparse.Namespace,
    folders: Mapping[str, Path],
    pairs: list[list[str]],
    beside: Callable[[], Any] = lambda: None,
) -> list[Measured]:
    """All scorers in rounds that alternate, after one to warm up and to compare scores; this package first.

    Args:
        args: Say which scorers, rounds and threads.
        folders: The checkpoint under each head.
        pairs: Queries and texts.
        beside: Called once a round.
    """
    expected: dict[Path, list[float]] = {}
    workers: list[Worker] = []
    found: list[Measured] = []
    try:
        for name, kind, python, batch in args.scorers:  # one after another: opening takes memory
            folder = folders[SCORERS[kind][0]]
            if folder not in expected:
                with Worker("ours", answering, "ours", folder, None, args.threads) as ours:
                    expected[folder] = ours.ask(pairs)["scores"]
            worker = Worker(name, answering, kind, folder, batch, args.threads, python=python)
            try:
                scores = worker.ask(pairs)["scores"]
            except WorkerError as error:
                worker.close()
                if kind.startswith("ours"):
                    raise
                error.left_out()
                continue
            workers.append(worker)
            found.append(Measured(name, kind, largest_difference(scores, expected[folder]), []))
        _, *rounds = alternated(args.rounds, [beside, *(partial(worker.ask, pairs) for worker in workers)])
    finally:
        for worker in workers:
            worker.close()
    for scorer, answers in zip(found, rounds, strict=True):
        scorer.rounds = answers
    return found


def compare_scorers(args: argparse.Namespace, pairs: list[list[str]]) -> None:
    """Prints a table of scorers at base size."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = make_checkpoints(Path(scratch))
        operations = needed_operations(checkpoints["linear"], *zip(*pairs, strict=True))
        rates: list[float] = []
        scorers = measured(args, checkpoints, pairs, lambda: rates.append(matrix_product_rate(args.threads)))
    print(
        f"{operations / len(pairs) / 1e9:.1f} GFLOP a pair; "
        f"fp32 matrix product: {statistics.median(rates) / 1e9:.0f} GFLOP/s\n"
    )
    print(
        table_head(
            "scorer", "pairs/s", "relative time", "ours in that precision is faster by (clock)",
            "(processor time)", "of the fp32 ceiling", "peak MB", "largest difference",
        )
    )  # fmt: skip
    ours: dict[str, Measured] = {}
    for scorer in scorers:
        if scorer.kind.startswith("ours"):
            ours.setdefault(precision(scorer.kind), scorer)
    for scorer in scorers:
        same = ours.get(precision(scorer.kind), scorers[0])
        ratios = [
            "" if scorer is same else Spread.ratio(scorer.rounds, same.rounds, what) for what in ("seconds", "cpu")
        ]
        share = Spread.of(operations / one["seconds"] / rate for one, rate in zip(scorer.rounds, rates, strict=True))
        wrong = precision(scorer.kind) == "float32" and scorer.apart > TOLERANCE
        print(
            table_row(
                scorer.name,
                f"{len(pairs) / median(scorer.rounds, 'seconds'):.2f}",
                Spread.ratio(scorer.rounds, scorers[0].rounds, "seconds"),
                *ratios,
                f"{share.median:.0%}",
                f"{scorer.rounds[-1]['peak_mb']:,.0f}",
                f"{scorer.apart:.1e}" + " DISAGREES" * wrong,
            ),
            flush=True,
        )


def compare_families(args: argparse.Namespace, pairs: list[list[str]]) -> None:
    """Prints a table: this package's time under Sentence Transformers' at its best batch size, per family."""
    names = list(FAMILIES) if args.family == "all" else [n for n in FAMILIES if n.split()[0] in args.family.split(",")]
    print(
        table_head("family", "largest difference", "faster by (clock)", "faster by (processor time)", "its best batch")
    )
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_family(Path(scratch), name)
            ours, *others = measured(args, dict.fromkeys(("linear", "classification"), folder), pairs)
            theirs = [scorer for scorer in others if not scorer.kind.startswith("ours")]
            if not theirs:
                raise SystemExit("No peer answered; see above.")
            best = min(theirs, key=lambda scorer: median(scorer.rounds, "cpu"))
            clock, cpu = (Spread.ratio(best.rounds, ours.rounds, what) for what in ("seconds", "cpu"))
            print(table_row(name, f"{best.apart:.1e}", clock, cpu, best.name), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the TREC DL 2019 pool (default: the demo collection)")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME[:BATCH,...]=PYTHON",
        help=f"of {', '.join(kind for kind in SCORERS if not kind.startswith('ours'))}",
    )  # fmt: skip
    parser.add_argument(
        "--ours", nargs="+", metavar="NAME[:TOKENS,...]",
        help="this package: ours (float32), ours-bfloat16, ours-int8 (default: ours, and ours-int8 without --family)",
    )  # fmt: skip
    parser.add_argument("--precisions", metavar="PYTHON", help="an environment with OpenVINO, ONNX Runtime, or both")
    parser.add_argument("--family", help=f"compare families: all, or of {', '.join(n.split()[0] for n in FAMILIES)}")
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.precisions:
        args.ours = args.ours or ["ours", "ours-bfloat16", "ours-int8"]
        args.peer += [f"{kind}:512={args.precisions}" for kind in SCORERS if kind.partition("-")[0] in ENGINES]
    if args.family and not args.peer:
        parser.error("--family needs a --peer to compare with, such as sentence-transformers=PYTHON.")
    args.ours = args.ours or ["ours", *(["ours-int8"] * (not args.family))]
    args.scorers = list(named_scorers([f"{name}={sys.executable}" for name in args.ours] + args.peer))
    describe(python for _, _, python, _ in args.scorers)
    pairs = load_pairs(args.data, args.queries, args.depth)
    print(f"{len(pairs)} pairs, {args.rounds} alternated rounds, {args.threads} threads\n", flush=True)
    (compare_families if args.family else compare_scorers)(args, pairs)


if __name__ == "__main__":
    main()
