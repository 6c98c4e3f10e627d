"""Lists per second and memory of training, of this package and its peers: the same weights, lists, loss and machine.

    python benchmarks/training.py --data ../shared/data/trec-dl-2019-pool \
        --peer lightning-ir=PYTHON --peer sentence-transformers=PYTHON

An ELECTRA of MiniLM's size (6 x 384) with random weights is saved in the format of each trainer, which then trains it
with RankNet on real lists: BM25's rankings stand for a teacher's. One list a step, fp32, AdamW at 1e-5, dropout 0.1, no
clipping, on the CPU. Every trainer is a worker process with an interpreter of its own (Lightning IR needs transformers
below 5). In each round every trainer trains once from the same weights; only its steps are timed, from the first
forward pass to the last optimiser step. A ratio is the median of the per-round ratios, so that a machine whose speed
drifts decides nothing. On a machine that is shared, trust the processor's time more than the clock's, with one thread:
it does not count the time in which other processes ran.

First, with dropout 0, every trainer makes three steps on one short list: their losses must be equal, up to the known
factor of Sentence Transformers' RankNet (its logarithm is to base 2), which shows that gradients and optimiser are too.
Peers run with several settings, the first of which is their default.

Last, the memory: how much a fresh process grows from its first step to its last, by the length of the lists, with and
without room for a whole list.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scoring import by_query, load_pairs, peak_mb

MINILM = {
    "vocab_size": 30522,
    "embedding_size": 384,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}
LEARNING_RATE = 1e-5
PEERS: dict[str, tuple[str, float, list[dict[str, Any]]]] = {
    # Name: head, what its loss is of ours, and settings. Lightning IR encodes a list in one batch; by default, Sentence
    # Transformers encodes as many pairs together as a step has lists, here one.
    "lightning-ir": ("linear", 1.0, [{}]),
    "sentence-transformers": ("classification", 1 / math.log(2), [{}, {"mini_batch_size": 8}]),
}
TOLERANCE = 1e-4
CHECKED_STEPS = 3
CHECKED_DOCUMENTS = 8

List = tuple[str, list[str]]
"""A query with the texts of its documents, the best first."""


# --- workers: one trainer each, in a process of its own ---------------------------------------------------------------


class Clock:
    """Times the steps of a training: from the first call of any module to the last optimiser step."""

    def __enter__(self) -> Clock:
        from torch.nn.modules.module import register_module_forward_pre_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.before_mb = 0.0
        self.seconds = self.processor_seconds = 0.0
        self._first_call = register_module_forward_pre_hook(self._start)
        self._steps = register_optimizer_step_post_hook(self._step)
        return self

    def __exit__(self, *_: Any) -> None:
        self._first_call.remove()
        self._steps.remove()

    def _start(self, *_: Any) -> None:
        self._first_call.remove()
        self.before_mb = resident_mb()
        self._started = time.perf_counter(), time.process_time()

    def _step(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._started[0]
        self.processor_seconds = time.process_time() - self._started[1]


def train_ours(checkpoint: str, lists: list[List], steps: int, settings: dict[str, Any]) -> list[float]:
    import pandas as pd

    from pyterrier_rankdistillm import Distillation

    rows = [
        (str(place), query, f"{place}-{rank}", text, rank, -float(rank))
        for place, (query, texts) in enumerate(lists)
        for rank, text in enumerate(texts)
    ]
    frame = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "rank", "score"])
    distillation = Distillation(
        checkpoint,
        loss="ranknet",
        steps=steps,
        batch_size=1,
        learning_rate=LEARNING_RATE,
        depth=None,
        log_every=1,
        device="cpu",
        verbose=False,
        **settings,
    )
    distillation.fit(frame)
    return [float(loss) for loss in distillation.training.log["loss"]]


def train_lightning_ir(checkpoint: str, lists: list[List], steps: int, _: dict[str, Any]) -> list[float]:
    import torch
    from lightning import Callback, Trainer
    from lightning_ir import CrossEncoderModule, LightningIRDataModule, RankNet
    from lightning_ir.data.data import RankSample

    class Samples(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """In the place of a ``RunDataset``, which wants its texts from ir_datasets."""

        def prepare_data(self) -> None: ...

        def __len__(self) -> int:
            return len(lists)

        def __getitem__(self, place: int) -> RankSample:
            query, texts = lists[place]
            docnos = [f"{place}-{rank}" for rank in range(len(texts))]
            targets = -torch.arange(len(texts), dtype=torch.float32)[:, None]
            return RankSample(str(place), query, docnos, texts, targets)

    class Losses(Callback):
        def on_train_batch_end(self, _trainer: Any, _module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    losses: list[float] = []
    module = CrossEncoderModule(checkpoint, loss_functions=[RankNet()])
    module.set_optimizer(torch.optim.AdamW, lr=LEARNING_RATE)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Losses()],
    )
    trainer.fit(module, LightningIRDataModule(Samples(), train_batch_size=1))
    return losses


def train_sentence_transformers(
    checkpoint: str, lists: list[List], steps: int, settings: dict[str, Any]
) -> list[float]:
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import RankNetLoss

    model = CrossEncoder(checkpoint, device="cpu")
    loss = RankNetLoss(model, **settings)
    losses: list[float] = []
    loss.register_forward_hook(lambda _module, _inputs, value: losses.append(value.item()))
    data = Dataset.from_dict(
        {
            "query": [query for query, _ in lists],
            "docs": [texts for _, texts in lists],
            "labels": [[float(len(texts) - rank) for rank in range(len(texts))] for _, texts in lists],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        CrossEncoderTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    return losses


TRAINERS: dict[str, Callable[[str, list[List], int, dict[str, Any]], list[float]]] = {
    "ours": train_ours,
    "lightning-ir": train_lightning_ir,
    "sentence-transformers": train_sentence_transformers,
}


def work(kind: str, settings: dict[str, Any], threads: int) -> None:
    """Answers each line (JSON: checkpoint, lists, steps) with losses, seconds and megabytes."""
    import torch

    torch.set_num_threads(threads)
    train = TRAINERS[kind]
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries that print must not disturb the answers
    for line in sys.stdin:
        task = json.loads(line)
        with Clock() as clock:
            losses = train(task["checkpoint"], task["lists"], task["steps"], settings)
        answer = {
            "losses": losses,
            "seconds": clock.seconds,
            "processor_seconds": clock.processor_seconds,
            "grown_mb": peak_mb() - clock.before_mb,
        }
        print(json.dumps(answer), file=answers, flush=True)


def resident_mb() -> float:
    """This program's resident memory now, on Linux."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024


class Worker:
    """A trainer in a process of its own."""

    def __init__(self, name: str, python: str, kind: str, settings: dict[str, Any], threads: int) -> None:
        self.name = name
        self.kind = kind
        command = [python, __file__, "--worker", kind, json.dumps(settings), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.rounds: list[dict[str, Any]] = []

    def __enter__(self) -> Worker:
        return self

    def train(self, checkpoint: Path, lists: list[List], steps: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        task = {"checkpoint": str(checkpoint), "lists": lists, "steps": steps}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} died; run its worker by hand to see why: {self.process.args}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __exit__(self, *_: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# --- what is measured -------------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path, head: str, dropout: float) -> Path:
    """A random encoder, the same whatever the dropout, under a linear head (Lightning IR's) or a classification's."""
    import torch

    from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
    from pyterrier_rankdistillm.scoring.encoder import CrossEncoder, EncoderConfig
    from pyterrier_rankdistillm.scoring.tokenizer import Lengths

    demo = Checkpoint.open("rankdistillm:demo")  # for its tokenizer: uncased WordPiece, 30,522 tokens
    config = EncoderConfig(**MINILM, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = CrossEncoder(config, "linear" if head == "linear" else "classification")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02 if "embeddings" in name else 0.05)
        else:
            torch.nn.init.constant_(parameter, float(name.endswith("LayerNorm.weight")))
    tokenizer = demo.tokenizer.with_lengths(Lengths(query=32, doc=256, pair=512))
    return Checkpoint(model.eval(), tokenizer, "random weights, benchmarks/training.py").save(folder)


def load_lists(data: Path | None, depth: int, number: int) -> list[List]:
    """BM25's top documents of the first queries that have so many."""
    full = [
        (query, texts)
        for query, texts in by_query(load_pairs(data, queries=sys.maxsize, depth=depth))
        if len(texts) >= depth
    ]
    if len(full) < number:
        raise SystemExit(f"Only {len(full)} queries have {depth} documents, not {number}. Lower --depth or --lists.")
    return [(query, texts[:depth]) for query, texts in full[:number]]


def check(workers: list[Worker], checkpoints: dict[str, Path], lists: list[List], threads: int) -> None:
    """Prints whether each trainer's losses are those of ours, under the same head."""
    query, texts = lists[0]
    short = [(query, texts[:CHECKED_DOCUMENTS])]
    expected: dict[str, list[float]] = {}
    for worker in workers[1:]:
        head, factor, _ = PEERS[worker.kind]
        if head not in expected:
            with Worker("ours", sys.executable, "ours", {}, threads) as ours:
                expected[head] = ours.train(checkpoints[head], short, CHECKED_STEPS)["losses"]
        losses = worker.train(checkpoints[head], short, CHECKED_STEPS)["losses"]
        pairs = zip(losses, expected[head], strict=True)
        difference = max(abs(theirs - factor * mine) for theirs, mine in pairs)
        verdict = "agrees" if difference <= TOLERANCE else "DISAGREES"
        curve = " ".join(f"{loss:.5f}" for loss in losses)
        print(f"  {worker.name}: {verdict}, largest difference {difference:.0e}; losses {curve}", flush=True)


def measure_speed(args: argparse.Namespace, depth: int, scratch: Path) -> None:
    lists = load_lists(args.data, depth, args.lists)
    checkpoints = {
        (head, dropout): make_checkpoint(scratch / f"{head}-{dropout}-{depth}", head, dropout)
        for head in ("linear", "classification")
        for dropout in (0.0, 0.1)
    }
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("this package", sys.executable, "ours", {}, args.threads))]
        for peer in args.peer:
            kind, python = peer.split("=", 1)
            for settings in PEERS[kind][2]:
                name = f"{kind} {' '.join(f'{key}={value}' for key, value in settings.items())}".rstrip()
                workers.append(stack.enter_context(Worker(name, python, kind, settings, args.threads)))
        print(f"\n{len(lists)} lists of {depth} documents, {args.threads} threads; with dropout 0:")
        undropped = {head: path for (head, dropout), path in checkpoints.items() if not dropout}
        check(workers, undropped, lists, args.threads)
        for number in range(args.rounds + 1):
            for worker in workers:
                head = PEERS[worker.kind][0] if worker.kind in PEERS else "linear"
                answer = worker.train(checkpoints[head, 0.1], lists, len(lists))
                if number:  # the first is the warm-up
                    worker.rounds.append(answer)
        report(workers, len(lists))


def report(workers: list[Worker], lists: int) -> None:
    def median(worker: Worker, kind: str) -> float:
        return statistics.median(answer[kind] for answer in worker.rounds)

    def ratios(worker: Worker, kind: str) -> list[float]:
        rounds = zip(worker.rounds, workers[0].rounds, strict=True)
        return [theirs[kind] / mine[kind] for theirs, mine in rounds]

    head = ("trainer", "lists/s", "ours is faster by", "by processor time", "its range", "lists/s CPU")
    print("{:42} {:>8} {:>18} {:>18} {:>13} {:>12}".format(*head))
    for worker in workers:
        by_processor = ratios(worker, "processor_seconds")
        print(
            f"{worker.name:42} {lists / median(worker, 'seconds'):8.3f} "
            f"{statistics.median(ratios(worker, 'seconds')):17.2f}x {statistics.median(by_processor):17.2f}x "
            f"{min(by_processor):6.2f}-{max(by_processor):.2f} {lists / median(worker, 'processor_seconds'):12.3f}",
            flush=True,
        )


def measure_memory(args: argparse.Namespace, scratch: Path) -> None:
    """Prints how much memory a training takes, in a process of its own each."""
    checkpoints = {
        head: make_checkpoint(scratch / f"memory-{head}", head, 0.1) for head in ("linear", "classification")
    }
    trainers: list[tuple[str, str, str, dict[str, Any]]] = [
        ("this package, room for a list", sys.executable, "ours", {}),
        (
            f"this package, room for {args.memory_tokens:,} tokens",
            sys.executable,
            "ours",
            {"memory_tokens": args.memory_tokens},
        ),
    ]
    for peer in args.peer:
        kind, python = peer.split("=", 1)
        trainers.append((kind, python, kind, {}))
    depths = (25, 50, 100)
    longest = load_lists(args.data, max(depths), 2)
    print(f"\n{'memory that 2 steps take, MB':42} " + " ".join(f"{depth:>4} docs" for depth in depths))
    for name, python, kind, settings in trainers:
        head = PEERS[kind][0] if kind in PEERS else "linear"
        grown = []
        for depth in depths:
            with Worker(name, python, kind, settings, args.threads) as worker:
                lists = [(query, texts[:depth]) for query, texts in longest]
                grown.append(worker.train(checkpoints[head], lists, len(lists))["grown_mb"])
        print(f"{name:42} " + " ".join(f"{megabytes:9.0f}" for megabytes in grown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the TREC DL 2019 pool (default: the demo collection)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--depth", type=int, nargs="*", default=[32, 100], help="documents of a list")
    parser.add_argument("--lists", type=int, default=3, help="lists of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-tokens", type=int, default=2048, help="room in the measurement of memory")
    parser.add_argument("--no-memory", action="store_true", help="measure speed only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for depth in args.depth:
            measure_speed(args, depth, Path(folder))
        if not args.no_memory:
            measure_memory(args, Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
