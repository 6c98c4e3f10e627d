"""Tiny random checkpoints of every family of encoders, made and scored by ``transformers`` alone.

Each folder is what ``save_pretrained`` writes; scores are those of ``AutoModelForSequenceClassification`` with
``AutoTokenizer``, one pair at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer

LONG = "the moon is not the sun and it is not the rain; "
PAIRS = [
    *tiny.PAIRS,
    ("cat", LONG * 9),
    (LONG * 9, "cat"),
    (LONG * 7, LONG * 8),
    ("", ""),
    ("<s> cat </s> <pad>", "the <pad> cat <mask> <unk> sat </s> on"),
    ("line\nbreak\u2028 and\u00a0space", "\u200bzero \u0000 width \U0001f1e9\U0001f1ea"),
]


def wordpiece(folder: Path) -> dict[str, Any]:
    tiny.write_tokenizer(folder)
    names = ("cls", "sep", "pad", "unk", "mask")
    return {f"{name}_token": f"[{name.upper()}]" for name in names}


def byte_level(folder: Path) -> dict[str, Any]:
    """As RoBERTa's: two separators between the texts, one token type."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("a", "t"), ("c", "at"), ("\u0120", "m"), ("o", "n")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*special, *letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}


def sentencepiece(folder: Path, types: bool = False) -> dict[str, Any]:
    """As XLM-RoBERTa's; with ``types`` as ALBERT's and DeBERTa's: one separator, BERT's token types."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [(piece, -2.0 - i / 10) for i, piece in enumerate(f"\u2581{word}" for word in tiny.WORDS.split())]
    pieces += [(piece, -6.0 - i / 50) for i, piece in enumerate("\u2581abcdefghijklmnopqrstuvwxyz.,;-!'")]
    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in special), *pieces], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    pair = "<s>:0 $A:0 </s>:0 $B:1 </s>:1" if types else "<s> $A </s> </s> $B </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Kind:
    """How a family's tiny checkpoint is made: its configuration's class and settings, its tokenizer."""

    config: str
    settings: dict[str, Any]
    tokenizer: Callable[[Path], dict[str, Any]]
    types: bool = True


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
}
ROBERTA = SMALL | {"max_position_embeddings": 50, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
MODERN = SMALL | {
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2,
    "local_attention": 8, "global_attn_every_n_layers": 2, "num_hidden_layers": 3,
}  # fmt: skip
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 48}
DEBERTA = SMALL | {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "position_biased_input": False, "type_vocab_size": 0, "pad_token_id": 1,
}  # fmt: skip

KINDS: dict[str, Kind] = {
    "electra": Kind("ElectraConfig", SMALL | {"embedding_size": 16}, wordpiece),
    "bert": Kind("BertConfig", SMALL, wordpiece),
    "bert-relu": Kind("BertConfig", SMALL | {"hidden_act": "relu", "classifier_dropout": 0.2}, wordpiece),
    "bert-two-labels": Kind("BertConfig", SMALL | {"num_labels": 2}, wordpiece),
    "roberta": Kind("RobertaConfig", ROBERTA, byte_level, types=False),
    "roberta-two-labels": Kind("RobertaConfig", ROBERTA | {"num_labels": 2}, byte_level, types=False),
    "xlm-roberta": Kind("XLMRobertaConfig", ROBERTA, sentencepiece, types=False),
    "distilbert": Kind("DistilBertConfig", DISTIL, wordpiece, types=False),
    "modernbert-cls": Kind("ModernBertConfig", MODERN | {"classifier_pooling": "cls"}, byte_level, types=False),
    "modernbert-mean": Kind("ModernBertConfig", MODERN | {"classifier_pooling": "mean"}, byte_level, types=False),
    "deberta-v2": Kind("DebertaV2Config", DEBERTA, lambda folder: sentencepiece(folder, types=True)),
    "albert": Kind(
        "AlbertConfig", SMALL | {"embedding_size": 16, "pad_token_id": 1},
        lambda folder: sentencepiece(folder, types=True),
    ),
}  # fmt: skip
WRITTEN_OUT = ("electra", "bert", "roberta", "xlm-roberta", "distilbert")


def make(folder: Path, name: str, *, model_max_length: int = 10**30, architecture: str = "", **settings: Any) -> Path:
    """Writes the checkpoint of a family; with ``architecture`` another of its classes, such as ``"Model"``."""
    kind = KINDS[name]
    folder.mkdir(parents=True, exist_ok=True)
    special = kind.tokenizer(folder)
    names = ["input_ids", "token_type_ids", "attention_mask"] if kind.types else ["input_ids", "attention_mask"]
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names, **special}
    tiny.write_json(folder / "tokenizer_config.json", tokenizer | {"model_max_length": model_max_length})
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    labels = {"num_labels": 1} | kind.settings | settings
    config = getattr(transformers, kind.config)(vocab_size=size, **labels)
    prefix = kind.config.removesuffix("Config")
    model = getattr(transformers, f"{prefix}{architecture or 'ForSequenceClassification'}")(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    return folder


def randomise(model: Any) -> None:
    """Weights that are large enough for scores to differ by more than 0.1."""
    for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
        noise = torch.from_numpy(np.random.default_rng(i).standard_normal(tuple(parameter.shape), dtype=np.float32))
        scale = 0.25 if parameter.ndim == 2 else 0.1
        with torch.no_grad():
            parameter.copy_(scale * noise + (parameter.ndim == 1 and "norm" in name.lower() and "weight" in name))


@torch.inference_mode()
def scores(folder: Path, pairs: Sequence[tuple[str, str]], longest: int = 48) -> list[float]:
    """By transformers, one pair at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for pair in pairs:  # in a list, since an empty text alone would be taken for none
        encoded = tokenizer([pair], truncation="longest_first", max_length=longest, return_tensors="pt")
        found.append(float(model(**encoded).logits[0, -1]))
    return found


@torch.inference_mode()
def vectors(folder: Path, pairs: Sequence[tuple[str, str]], pooling: str, longest: int = 48) -> torch.Tensor:
    """The pooled vectors of a family's bare model, by transformers, shape (pairs, hidden)."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for pair in pairs:
        encoded = tokenizer([pair], truncation="longest_first", max_length=longest, return_tensors="pt")
        hidden = model(**encoded).last_hidden_state[0]  # (T, H)
        reduce = {"first": lambda h: h[0], "mean": lambda h: h.mean(0), "max": lambda h: h.amax(0)}
        found.append((reduce | {"sum": lambda h: h.sum(0)})[pooling](hidden))
    return torch.stack(found)
