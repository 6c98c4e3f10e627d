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
import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from measuring import (
    Clock,
    Spread,
    Worker,
    alternated,
    describe,
    largest_difference,
    median,
    memory_mb,
    table_head,
    table_row,
)
from scoring import by_query, load_pairs

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
Task = tuple[str, list[List], int]
"""A checkpoint, what it is trained on, and how many steps."""


# --- workers: one trainer each, in a process of its own ---------------------------------------------------------------


class Steps:
    """Times the steps of a training: from the first call of any module to the last optimiser step."""

    def __enter__(self) -> Steps:
        from torch.nn.modules.module import register_module_forward_pre_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.before_mb = 0.0
        self.took: dict[str, float] = {}
        self._first_call = register_module_forward_pre_hook(self._start)
        self._steps = register_optimizer_step_post_hook(self._step)
        return self

    def __exit__(self, *_: Any) -> None:
        self._first_call.remove()
        self._steps.remove()

    def _start(self, *_: Any) -> None:
        self._first_call.remove()
        self.before_mb = memory_mb()["now"]
        self._clock = Clock()

    def _step(self, *_: Any) -> None:
        self.took = self._clock.read()


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


def trainer(kind: str, settings: dict[str, Any], threads: int) -> Callable[[Task], dict[str, Any]]:
    """Answers a task with losses, what the steps took, and MB."""
    import torch

    torch.set_num_threads(threads)

    def answer(task: Task) -> dict[str, Any]:
        checkpoint, lists, steps = task
        with Steps() as timed:
            losses = TRAINERS[kind](checkpoint, lists, steps, settings)
        return {"losses": losses, **timed.took, "grown_mb": memory_mb()["peak"] - timed.before_mb}

    return answer


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


def check(trainers: list[Trainer], workers: list[Worker], task: Callable[[str], Task], threads: int) -> None:
    """Prints whether each trainer's losses are those of ours, under the same head."""
    expected: dict[str, list[float]] = {}
    for (name, _, kind, _), worker in zip(trainers[1:], workers[1:], strict=True):
        head, factor, _ = PEERS[kind]
        if head not in expected:
            with Worker("ours", trainer, "ours", {}, threads) as ours:
                expected[head] = ours.ask(task(head))["losses"]
        losses = worker.ask(task(head))["losses"]
        difference = largest_difference(losses, [factor * loss for loss in expected[head]])
        verdict = "agrees" if difference <= TOLERANCE else "DISAGREES"
        curve = " ".join(f"{loss:.5f}" for loss in losses)
        print(f"- {name}: {verdict}, largest difference {difference:.0e}; losses {curve}", flush=True)


Trainer = tuple[str, str, str, dict[str, Any]]
"""Name, interpreter, kind and settings."""


def named_trainers(peers: list[str]) -> list[Trainer]:
    """This package's, and peers' with each of their settings."""
    found: list[Trainer] = [("this package", sys.executable, "ours", {})]
    for peer in peers:
        kind, python = peer.split("=", 1)
        for settings in PEERS[kind][2]:
            name = f"{kind} {' '.join(f'{key}={value}' for key, value in settings.items())}".rstrip()
            found.append((name, python, kind, settings))
    return found


def head_of(kind: str) -> str:
    """Of the checkpoint that a kind of trainer opens."""
    return PEERS[kind][0] if kind in PEERS else "linear"


def measure_speed(args: argparse.Namespace, depth: int, scratch: Path) -> None:
    lists = load_lists(args.data, depth, args.lists)
    checkpoints = {
        (head, dropout): str(make_checkpoint(scratch / f"{head}-{dropout}-{depth}", head, dropout))
        for head in ("linear", "classification")
        for dropout in (0.0, 0.1)
    }
    trainers = named_trainers(args.peer)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(name, trainer, kind, settings, args.threads, python=python))
            for name, python, kind, settings in trainers
        ]
        print(f"\n{len(lists)} lists of {depth} documents, {args.threads} threads; with dropout 0:\n", flush=True)
        short = [(query, texts[:CHECKED_DOCUMENTS]) for query, texts in lists[:1]]
        check(trainers, workers, lambda head: (checkpoints[head, 0.0], short, CHECKED_STEPS), args.threads)
        calls = [
            partial(worker.ask, (checkpoints[head_of(kind), 0.1], lists, len(lists)))
            for (_, _, kind, _), worker in zip(trainers, workers, strict=True)
        ]
        alternated(1, calls)  # to warm up
        rounds = alternated(args.rounds, calls)
    print("\n" + table_head("trainer", "lists/s", "faster by (clock)", "faster by (processor time)", "lists/s CPU"))
    for (name, *_), answers in zip(trainers, rounds, strict=True):
        each = [f"{len(lists) / median(answers, what):.3f}" for what in ("seconds", "cpu")]
        clock, cpu = (Spread.ratio(answers, rounds[0], what) for what in ("seconds", "cpu"))
        print(table_row(name, each[0], clock, cpu, each[1]), flush=True)


def measure_memory(args: argparse.Namespace, scratch: Path) -> None:
    """Prints how much memory a training takes, in a process of its own each."""
    checkpoints = {
        head: make_checkpoint(scratch / f"memory-{head}", head, 0.1) for head in ("linear", "classification")
    }
    small = {"memory_tokens": args.memory_tokens}
    whole, *peers = named_trainers(args.peer)
    trainers: list[Trainer] = [
        whole,
        (f"this package, room for {args.memory_tokens:,} tokens", sys.executable, "ours", small),
        *(peer for peer in peers if not peer[3]),
    ]
    depths = (25, 50, 100)
    longest = load_lists(args.data, max(depths), 2)
    print("\n" + table_head("memory that 2 steps take, MB", *(f"{depth} documents" for depth in depths)))
    for name, python, kind, settings in trainers:
        grown = []
        for depth in depths:
            lists = [(query, texts[:depth]) for query, texts in longest]
            with Worker(name, trainer, kind, settings, args.threads, python=python) as worker:
                grown.append(worker.ask((str(checkpoints[head_of(kind)]), lists, len(lists)))["grown_mb"])
        print(table_row(name, *(f"{megabytes:,.0f}" for megabytes in grown)), flush=True)


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
    describe(peer.partition("=")[2] for peer in args.peer)
    with tempfile.TemporaryDirectory() as folder:
        for depth in args.depth:
            measure_speed(args, depth, Path(folder))
        if not args.no_memory:
            measure_memory(args, Path(folder))


if __name__ == "__main__":
    main()
