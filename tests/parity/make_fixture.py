"""Makes ``checkpoint/`` and ``pairs.jsonl`` beside this file: what Lightning IR 0.0.6 itself saves, and scores.

Run by hand, in an environment with ``lightning-ir==0.0.6`` (which needs transformers below 5), from anywhere::

    python tests/parity/make_fixture.py

The checkpoint is a random MonoElectra model made, saved and scored by Lightning IR's own classes, with weights large
enough that scores differ by several units, and with a WordPiece vocabulary of some 1,400 pieces taken from the demo
collection. The texts are the demo collection's and a few odd ones: over-long queries and passages, special-token
strings, Unicode, empty text. Nothing of ``pyterrier_rankdistillm`` is imported. ``tests/test_parity.py`` reads it.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import torch
from lightning_ir import CrossEncoderModule
from lightning_ir.models import MonoConfig
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import ElectraConfig, ElectraModel, ElectraTokenizerFast

HERE = Path(__file__).resolve().parent
COLLECTION = HERE.parents[1] / "pyterrier_rankdistillm" / "demo" / "collection"
QUERY_LENGTH, DOC_LENGTH = 32, 256


def main() -> None:
    assert importlib.metadata.version("lightning-ir") == "0.0.6"
    lines = (COLLECTION / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [json.loads(line)["text"] for line in lines]
    queries = [line.split("\t")[1] for line in (COLLECTION / "queries.tsv").read_text(encoding="utf-8").splitlines()]
    module = save_checkpoint([*passages, *queries])
    pairs = choose_pairs(queries, passages)
    with torch.inference_mode():
        scores = [float(module.score(query, [text]).scores[0]) for query, text in pairs]
    print(f"{len(pairs)} pairs, scores from {min(scores):.2f} to {max(scores):.2f}")
    with (HERE / "pairs.jsonl").open("w", encoding="utf-8") as out:
        for (query, text), score in zip(pairs, scores, strict=True):
            out.write(json.dumps({"query": query, "text": text, "score": score}) + "\n")


def save_checkpoint(texts: list[str]) -> CrossEncoderModule:
    """A random checkpoint in ``checkpoint/``, opened again from there."""
    wordpiece = BertWordPieceTokenizer(vocabulary(texts), lowercase=True)
    torch.manual_seed(7)
    with tempfile.TemporaryDirectory() as backbone:
        wordpiece.save(f"{backbone}/tokenizer.json")
        ElectraTokenizerFast(tokenizer_file=f"{backbone}/tokenizer.json", model_max_length=512).save_pretrained(
            backbone
        )
        ElectraModel(
            ElectraConfig(
                vocab_size=wordpiece.get_vocab_size(),
                embedding_size=24,
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=96,
                initializer_range=0.25,
            )
        ).save_pretrained(backbone)
        config = MonoConfig(query_length=QUERY_LENGTH, doc_length=DOC_LENGTH)
        module = CrossEncoderModule(backbone, config=config)
    with torch.no_grad():  # biases and norms start as zeros and ones, which would hide that they are left out
        for parameter in module.model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
        module.model.linear.weight.normal_(0, 0.5)
    folder = HERE / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    module.model.save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)
    return CrossEncoderModule(str(folder)).eval()


def vocabulary(texts: list[str]) -> dict[str, int]:
    """Frequent words, frequent word endings, and all characters: the same in every run, unlike a trained one."""
    plain = BertWordPieceTokenizer()
    words = Counter(
        word for text in texts for word, _ in plain.pre_tokenizer.pre_tokenize_str(plain.normalizer.normalize_str(text))
    )
    endings = Counter(f"##{word[-size:]}" for word in words for size in (2, 3, 4) if len(word) > size)
    characters = sorted({*"".join(words), *"0123456789#%_+@", *"\u6c34\u043f\u043e\u043b\u0435"})
    pieces = [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *characters,
        *(f"##{character}" for character in characters),
        *(word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0]))[:900]),
        *(ending for ending, _ in sorted(endings.items(), key=lambda item: (-item[1], item[0]))[:400]),
    ]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def choose_pairs(queries: list[str], passages: list[str]) -> list[tuple[str, str]]:
    draw = random.Random(1)
    pairs = [(draw.choice(queries), draw.choice(passages)) for _ in range(22)]
    long_query = " ".join(draw.sample(queries, 8))
    long_text = " ".join(draw.sample(passages, 6))
    query, text = queries[0], passages[0]
    return [
        *pairs,
        (long_query, text),
        (query, long_text),
        (long_query, long_text),
        (query, " ".join(passages[:3])),
        (query, "unsplittable" * 40),
        ("", text),
        (query, ""),
        ("", ""),
        (query, "  \t\n "),
        ("what is a [MASK] for", "A [SEP] B [CLS] C [PAD] D [UNK] E [sep]"),
        ("[CLS] bread [SEP]", text),
        (
            "Caf\u00e9 CR\u00c8ME na\u00efve \u0130stanbul",
            "Stra\u00dfe \u00c5ngstr\u00f6m \u0153uvre \ufb01ne \u212b e\u0301le\u0300ve",
        ),
        (
            "\u6c34 \u706b",
            "\u6c34\u706b\u6c34 \u043f\u043e\u043b\u0435 \u03b1\u03b2\u03b3 \u0645\u0627\u0621 \U0001f35e\U0001f35e",
        ),
        (
            query,
            "zero\u200bwidth\u00a0space\u00adhyphen\u2028line\u0000null\ufffdbad \u2014 \u201cquotes\u201d \u2019s",
        ),
        (query, "do not, don't; can't ... it's 3.5% (of 1,000)! C++ #1 a/b @home ##ing _under_"),
        (query, "\U0001f35e" * 300),
        ("why " * 40, "because " * 300),
        (query, text.upper()),
    ]


if __name__ == "__main__":
    main()
