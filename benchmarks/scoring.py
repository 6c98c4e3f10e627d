"""Pairs per second of this package and its peers: the same weights, the same pairs, the same machine.

    python benchmarks/scoring.py --family all --data ../shared/data/trec-dl-2019-pool \
        --peer sentence-transformers=PYTHON --threads 1
    python benchmarks/scoring.py --data ../shared/data/trec-dl-2019-pool \
        --peer lightning-ir=PYTHON --peer pyterrier-dr=PYTHON --peer sentence-transformers=PYTHON \
        --peer onnxruntime=PYTHON --peer openvino:1024=PYTHON

One ELECTRA of base size (12 x 768) with random weights is saved in the format of each scorer. Every scorer is a worker
process with an interpreter of its own (Lightning IR needs transformers below 5). In each round every scorer scores
all pairs once; a ratio is the median of the per-round ratios, so that a machine whose speed drifts decides nothing.
Peers run at several batch sizes, the first of which is their default, or at those that are named after a colon. Scores
must agree to 2e-5 (int8's are another model's, their difference is printed). The ceiling is what this machine's fp32
matrix product could do with the operations that a pair needs, measured in the same rounds. With ``--data``, nDCG@10 of
float32 and int8 with the demo checkpoint is printed too.

With ``--family``, one model of each family at its usual size (random weights, transformers' own format, the demo's
WordPiece tokenizer for all) is scored by this package and by Sentence Transformers at several batch sizes. Ratios are
of processor time too, which a machine that others use disturbs less.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASE = {
    "vocab_size": 30522,
    "embedding_size": 768,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
PEERS = {
    "lightning-ir": ("linear", [100, 1, 4, 8, 16]),
    "pyterrier-dr": ("linear", [16]),
    "sentence-transformers": ("classification", [32, 1, 4, 8]),
    "onnxruntime": ("classification", [1024, 256, 512, 2048]),  # tokens; sorted by length, as one would write it
    "openvino": ("classification", [1024, 256, 512, 2048]),
}
OURS: dict[str, dict[str, Any]] = {"ours": {}, "ours, int8": {"dtype": "int8"}}
TOLERANCE = 2e-5


# --- workers: one scorer each, in a process of its own ----------------------------------------------------------------


def open_scorer(kind: str, checkpoint: str, setting: Any) -> Callable[[list[list[str]]], list[float]]:
    """A function from pairs to scores."""
    if kind == "ours-sets":
        from pyterrier_rankdistillm import SetEncoderReRanker

        lists = SetEncoderReRanker(checkpoint, device="cpu", **(setting or {})).scorer
        return lambda pairs: lists.score_lists(*zip(*by_query(pairs), strict=True)).scores.tolist()
    if kind.startswith("ours"):
        from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
        from pyterrier_rankdistillm.scoring.scorer import Scorer

        scorer = Scorer(Checkpoint.open(checkpoint), **(setting or {}))
        return lambda pairs: scorer.score([q for q, _ in pairs], [d for _, d in pairs]).scores.tolist()
    if kind == "lightning-ir":
        import torch
        from lightning_ir import CrossEncoderModule

        module = CrossEncoderModule(checkpoint).eval()

        def score(pairs: list[list[str]]) -> list[float]:
            scores: list[float] = []
            with torch.inference_mode():
                for query, texts in by_query(pairs):
                    for start in range(0, len(texts), setting):
                        scores += module.score([query], [texts[start : start + setting]]).scores.view(-1).tolist()
            return scores

        return score
    if kind == "pyterrier-dr":
        import pandas as pd
        from pyterrier_dr import LightningIRMonoScorer

        transformer = LightningIRMonoScorer(checkpoint, batch_size=setting, verbose=False)

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
        return lambda pairs: model.predict(pairs, batch_size=setting, show_progress_bar=False).tolist()
    if kind in ("onnxruntime", "openvino"):
        return exported(kind, checkpoint, setting)
    raise ValueError(f"No scorer is called {kind!r}.")


def exported(kind: str, checkpoint: str, batch_tokens: int) -> Callable[[list[list[str]]], list[float]]:
    """The model of transformers as an ONNX graph, with pairs sorted by length and batched under a token budget."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer, ElectraForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = ElectraForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager").eval()
    names = ("input_ids", "attention_mask", "token_type_ids")
    with tempfile.TemporaryDirectory() as scratch:
        file = f"{scratch}/model.onnx"
        example = tokenizer([["a query", "a text"], ["a query", "a longer text"]], padding=True, return_tensors="pt")
        axes = {name: {0: "batch", 1: "tokens"} for name in names}
        torch.onnx.export(
            model, tuple(example[name] for name in names), file, dynamo=False, opset_version=17,
            input_names=list(names), output_names=["logits"], dynamic_axes=axes,
        )  # fmt: skip
        if kind == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            run = lambda inputs: session.run(None, inputs)[0]  # noqa: E731
        else:
            import openvino

            settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
            compiled = openvino.Core().compile_model(file, "CPU", settings)
            run = lambda inputs: compiled(inputs)[0]  # noqa: E731

    def score(pairs: list[list[str]]) -> list[float]:
        encoded = tokenizer(pairs, truncation=True, max_length=512)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        scores = np.empty(len(pairs))
        left = np.argsort(-lengths)
        while len(left):
            batch, left = np.split(left, [max(1, batch_tokens // lengths[left[0]])])
            rows = {name: [encoded[name][i] for i in batch] for name in names}
            scores[batch] = run(dict(tokenizer.pad(rows, return_tensors="np")))[:, 0]
        return scores.tolist()

    return score


def by_query(pairs: list[list[str]]) -> list[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for query, text in pairs:
        grouped.setdefault(query, []).append(text)
    return list(grouped.items())


def work(kind: str, checkpoint: str, setting: Any, threads: int) -> None:
    """Answers each line of pairs (JSON) with scores, seconds and peak memory."""
    import torch

    torch.set_num_threads(threads)
    score = open_scorer(kind, checkpoint, setting)
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries that print must not disturb the answers
    for line in sys.stdin:
        pairs = json.loads(line)
        started, used = time.perf_counter(), time.process_time()
        scores = score(pairs)
        answer = {
            "seconds": time.perf_counter() - started,
            "cpu": time.process_time() - used,
            "scores": scores,
            "peak_mb": peak_mb(),
        }
        print(json.dumps(answer), file=answers, flush=True)


def peak_mb() -> float:
    """Peak of resident memory, of this program alone: what getrusage says begins with its parent's (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


class Worker:
    """A scorer in a process of its own."""

    def __init__(self, name: str, python: str, kind: str, checkpoint: Path, setting: Any, threads: int) -> None:
        self.name = name
        command = [python, __file__, "--worker", kind, str(checkpoint), json.dumps(setting), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.peak_mb = 0.0

    def score(self, pairs: list[list[str]]) -> tuple[list[float], float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(pairs) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} died; run its worker by hand to see why: {self.process.args}")
        answer = json.loads(line)
        self.peak_mb = answer["peak_mb"]
        self.last_cpu = float(answer["cpu"])
        return answer["scores"], answer["seconds"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


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


def compare_families(args: argparse.Namespace) -> None:
    """Prints a table: this package's time under Sentence Transformers' at its best batch size, per family."""
    peers = [peer.split("=", 1) for peer in args.peer]
    pairs = load_pairs(args.data, args.queries, args.depth)
    names = list(FAMILIES) if args.family == "all" else [n for n in FAMILIES if n.split()[0] in args.family.split(",")]
    print(f"{len(pairs)} pairs, {args.rounds} alternated rounds, {args.threads} threads")
    print("| family | largest difference | faster by (clock) | range | faster by (processor time) | best batch there |")
    print("|---|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_family(Path(scratch), name)
            ours = Worker("ours", sys.executable, "ours", folder, None, args.threads)
            theirs = []
            for peer, python in peers:
                kind, _, sizes = peer.partition(":")
                batches = [int(size) for size in sizes.split(",")] if sizes else PEERS[kind][1]
                theirs += [Worker(f"{kind}, {b}", python, kind, folder, b, args.threads) for b in batches]
            expected, _ = ours.score(pairs[:8])
            for worker in theirs:  # one to warm up, and to compare
                found, _ = worker.score(pairs[:8])
                apart = max(abs(a - b) for a, b in zip(expected, found, strict=True))
            for _ in range(args.rounds):
                for worker in (ours, *theirs):
                    _, seconds = worker.score(pairs)
                    worker.seconds.append(seconds)
                    worker.cpu.append(worker.last_cpu)
            best = min(theirs, key=lambda worker: statistics.median(worker.cpu))
            clock = [b / a for a, b in zip(ours.seconds, best.seconds, strict=True)]
            cpu = statistics.median(b / a for a, b in zip(ours.cpu, best.cpu, strict=True))
            print(
                f"| {name} | {apart:.1e} | {statistics.median(clock):.2f} | {min(clock):.2f} to {max(clock):.2f} | "
                f"{cpu:.2f} | {best.name} |",
                flush=True,
            )
            for worker in (ours, *theirs):
                worker.close()


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
    for head in ("linear", "classification"):
        model = CrossEncoder(EncoderConfig(**BASE), head)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.02 if "embeddings" in name else 0.05)
        if encoder is not None:
            model.load_state_dict({n: t for n, t in encoder.state_dict().items() if n != "linear.weight"}, strict=False)
        encoder = model
        source = "random weights, benchmarks/scoring.py"
        paths[head] = Checkpoint(model.eval(), demo.tokenizer.with_lengths(lengths), source).save(folder / head)
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
    run = pt.io.read_results(str(data.parent / "trec-dl-runs" / "bm25-pyserini.trec-dl-2019.run.gz"))
    run = run.sort_values(["qid", "score", "docno"], ascending=[True, False, False]).groupby("qid").head(depth)
    run = run[run["docno"].isin(texts) & run["qid"].isin(topics)]
    return run.assign(query=run["qid"].map(topics), text=run["docno"].map(texts))


def effect_of_int8(data: Path) -> None:
    """Prints nDCG@10 on the TREC DL 2019 pool in float32 and int8, with the demo checkpoint."""
    import pyterrier as pt
    from pyterrier.measures import nDCG

    from pyterrier_rankdistillm import MonoElectra

    run, qrels = condensed_run(data, depth=100), pt.io.read_qrels(str(data / "qrels.txt"))
    run = run[run["qid"].isin(qrels["qid"])]
    for dtype in ("float32", "int8"):
        reranked = MonoElectra("rankdistillm:demo", device="cpu", dtype=dtype)(run)
        value = pt.Evaluate(reranked, qrels, metrics=[nDCG @ 10])["nDCG@10"]
        print(f"nDCG@10 of the demo checkpoint in {dtype}: {value:.4f} ({len(run)} pairs)", flush=True)


def needed_operations(checkpoint: Path, pairs: list[list[str]]) -> float:
    """Floating-point operations of the matrix products that the scores need; the last layer for [CLS] only."""
    from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint

    tokenizer = Checkpoint.open(checkpoint).tokenizer
    hidden, inner, layers = BASE["hidden_size"], BASE["intermediate_size"], BASE["num_hidden_layers"]
    total = 0.0
    for query, text in pairs:
        tokens = len(tokenizer.join(tokenizer.encode_queries([query])[0], tokenizer.encode_docs([text])[0]).ids)
        full = 2 * tokens * (4 * hidden**2 + 2 * hidden * inner) + 4 * tokens**2 * hidden
        last = 2 * (2 * tokens + 2) * hidden**2 + 2 * 2 * hidden * inner + 4 * tokens * hidden
        total += (layers - 1) * full + last
    return total


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the TREC DL 2019 pool (default: the demo collection)")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME[:BATCH,...]=PYTHON", help=f"of {', '.join(PEERS)}"
    )
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--family", help=f"compare families: all, or of {', '.join(n.split()[0] for n in FAMILIES)}")
    args = parser.parse_args()
    if args.family:
        compare_families(args)
        return

    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = make_checkpoints(Path(scratch))
        pairs = load_pairs(args.data, args.queries, args.depth)
        operations = needed_operations(checkpoints["linear"], pairs)
        workers = []
        reference = {}
        for name, setting in OURS.items():
            workers.append(Worker(name, sys.executable, "ours", checkpoints["linear"], setting, args.threads))
            reference[name] = "linear"
        for peer in args.peer:
            name, python = peer.split("=", 1)
            kind, _, batches = name.partition(":")
            head, settings = PEERS[kind]
            for setting in [int(batch) for batch in batches.split(",") if batch] or settings:
                name = f"{kind}, {setting} a batch"
                workers.append(Worker(name, python, kind, checkpoints[head], setting, args.threads))
                reference[name] = head
        print(f"{len(pairs)} pairs, {operations / len(pairs) / 1e9:.1f} GFLOP a pair, {args.threads} threads")
        expected = {head: expected_scores(checkpoints[head], pairs, args.threads) for head in set(reference.values())}
        for worker in workers:  # warm-up, and the check
            scores, _ = worker.score(pairs)
            wanted = expected[reference[worker.name]]
            difference = max(abs(a - b) for a, b in zip(scores, wanted, strict=True))
            verdict = "agrees" if difference <= TOLERANCE else "differs" if "int8" in worker.name else "DISAGREES"
            print(f"{worker.name}: {verdict}, largest difference {difference:.1e}", flush=True)
        rates = []
        for _ in range(args.rounds):
            rates.append(matrix_product_rate(args.threads))
            for worker in workers:
                worker.seconds.append(worker.score(pairs)[1])
        report(workers, rates, operations, len(pairs))
        for worker in workers:
            worker.close()
    if args.data is not None:
        effect_of_int8(args.data)


def expected_scores(checkpoint: Path, pairs: list[list[str]], threads: int) -> list[float]:
    worker = Worker("ours", sys.executable, "ours", checkpoint, {}, threads)
    scores, _ = worker.score(pairs)
    worker.close()
    return scores


def report(workers: list[Worker], rates: list[float], operations: float, pairs: int) -> None:
    ours = workers[0]
    print(f"\nfp32 matrix product: {statistics.median(rates) / 1e9:.0f} GFLOP/s (median of {len(rates)} rounds)")
    print(f"{'scorer':38} {'pairs/s':>8} {'ours is faster by':>18} {'of the ceiling':>15} {'peak MB':>8}")
    for worker in workers:
        speed = pairs / statistics.median(worker.seconds)
        ratio = statistics.median(theirs / mine for theirs, mine in zip(worker.seconds, ours.seconds, strict=True))
        share = statistics.median(
            operations / seconds / rate for seconds, rate in zip(worker.seconds, rates, strict=True)
        )
        print(f"{worker.name:38} {speed:8.2f} {ratio:17.2f}x {share:14.0%} {worker.peak_mb:8.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
