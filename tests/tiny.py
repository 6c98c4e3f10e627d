"""Tiny random checkpoints in every format that the package opens, and the scores that transformers gives for them.

What a checkpoint should score is computed by ``transformers`` and ``tokenizers`` alone, one pair at a time without
padding, so that nothing of ours is its own judge.
"""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import ElectraConfig, ElectraForPreTraining, ElectraForSequenceClassification, ElectraModel

from pyterrier_rankdistillm.scoring import onednn

needs_bfloat16 = pytest.mark.skipif(not onednn.works(onednn.BFloat16Linear), reason="no CPU that multiplies bfloat16")

WORDS = "why does bread rise yeast the and of in cat sat on mat rain snow water garden onion sun moon is it not"
VOCAB = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *WORDS.split(),
    *string.ascii_letters,
    *(f"##{letter}" for letter in string.ascii_letters),
    *string.digits,
    *(f"##{digit}" for digit in string.digits),
    *".,:;!?'-()[]",
    *"éß水",
]
QUERY_LENGTH, DOC_LENGTH, POSITIONS = 6, 16, 48
SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "embedding_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
LIGHTNING_IR_HUB = {
    "architectures": ["CrossEncoderElectraModel"],
    "model_type": "cross-encoder",
    "backbone_model_type": "electra",
    "query_length": QUERY_LENGTH,
    "doc_length": DOC_LENGTH,
    "pooling_strategy": "first",
}
LIGHTNING_IR_006 = {
    **LIGHTNING_IR_HUB,
    "architectures": ["MonoElectraModel"],
    "model_type": "mono",
    "scoring_strategy": "rank",
    "linear_bias": False,
    "tokenizer_pattern": None,
    "_bert_pool": False,
    "use_adapter": False,
    "adapter_config": None,
    "position_embedding_type": "absolute",
}
PAIRS = [
    ("why does bread rise", "Yeast makes bread rise."),
    ("why does bread rise", "The cat sat on the mat."),
    ("why does bread rise", ""),
    ("", "The cat sat on the mat."),
    ("why does it rain and not snow in the garden of the moon", "rain is water, snow is not"),
    ("cat", "the sun and the moon and the rain and the snow and the garden and the onion and the water " * 3),
    ("why does the sun rise and the moon not rise and the rain not rise " * 3, "the moon is not the sun " * 12),
    ("[SEP] cat [MASK]", "the [CLS] cat [UNK] sat [SEP] on"),
    ("Caf\u00e9 stra\u00dfe", "\u6c34 is water \U0001f600 \u0645\u0627\u0621"),
]

Scoring = Callable[[str, str], float]


@dataclass(frozen=True)
class Tiny:
    """A checkpoint folder, and the score that a (query, text) pair should get."""

    folder: Path
    score: Scoring


def write_tokenizer(folder: Path, *, lowercase: bool = True, fast: bool = True, vocab: list[str] = VOCAB) -> Tokenizer:
    """Writes ``vocab.txt``, ``tokenizer_config.json`` and, where ``fast``, ``tokenizer.json``."""
    wordpiece = BertWordPieceTokenizer({token: i for i, token in enumerate(vocab)}, lowercase=lowercase)
    if fast:
        wordpiece.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "ElectraTokenizer", "do_lower_case": lowercase})
    return Tokenizer.from_str(wordpiece.to_str())


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def change_config(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {key: value for key, value in (config | changes).items() if key not in drop})


def transformers_model(kind: type = ElectraModel, **changes: Any) -> Any:
    """A model of transformers' own, with weights large enough that scores differ by more than 1."""
    model = kind(ElectraConfig(**SHAPE | changes)).eval()
    for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
        noise = torch.from_numpy(np.random.default_rng(i).standard_normal(tuple(parameter.shape), dtype=np.float32))
        scale = 2.0 if "out_proj" in name else 0.25 if parameter.ndim == 2 else 0.1
        with torch.no_grad():
            parameter.copy_(scale * noise + ("LayerNorm.weight" in name))
    return model


def linear_head(rows: int = 1, *, bias: bool = False, hidden: int = 32) -> dict[str, Tensor]:
    rng = np.random.default_rng(22)
    weight = 0.5 * torch.from_numpy(rng.standard_normal((rows, hidden), dtype=np.float32))
    extra = {"linear.bias": torch.from_numpy(rng.standard_normal(rows, dtype=np.float32))} if bias else {}
    return {"linear.weight": weight, **extra}


def cut_and_join(tokenizer: Tokenizer, query: str, text: str, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Ids and token types of a pair, each of shape (1, tokens)."""
    if config.get("query_length") is None:  # nothing but the encoder's positions limits a pair
        tokenizer.enable_truncation(POSITIONS, strategy="longest_first")
        encoding = tokenizer.encode(query, text)
        tokenizer.no_truncation()
        return torch.tensor([encoding.ids]), torch.tensor([encoding.type_ids])
    query_ids = tokenizer.encode(query, add_special_tokens=False).ids[: config["query_length"]]
    text_ids = tokenizer.encode(text, add_special_tokens=False).ids[: config["doc_length"]]
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    ids = [cls, *query_ids, sep, *text_ids, sep]
    types = [0] * (len(query_ids) + 2) + [1] * (len(text_ids) + 1)
    return torch.tensor([ids]), torch.tensor([types])


def scoring(model: Any, tokenizer: Tokenizer, config: Mapping[str, Any], head: Mapping[str, Tensor] | None) -> Scoring:
    """How transformers scores a pair: with a linear head on the [CLS] vector, or with the model's own logits."""

    @torch.inference_mode()
    def score(query: str, text: str) -> float:
        ids, types = cut_and_join(tokenizer, query, text, config)
        output = model(input_ids=ids, token_type_ids=types)
        if head is None:
            return float(output.logits[0, -1])
        logits = F.linear(output.last_hidden_state[0, 0], head["linear.weight"], head.get("linear.bias"))
        return float(logits[0] if len(logits) == 1 else logits.log_softmax(-1)[1])

    return score


def lightning_ir(
    folder: Path,
    *,
    config: Mapping[str, Any] = LIGHTNING_IR_HUB,
    rows: int = 1,
    bias: bool = False,
    rename: Callable[[str], str] = str,
    fast_tokenizer: bool = True,
    **shape: Any,
) -> Tiny:
    """The backbone's own weight names and a head named ``linear``; ``rename`` maps them to a port's names."""
    model, head = transformers_model(**shape), linear_head(rows, bias=bias)
    config = {**SHAPE, **shape, **config}
    write_json(folder / "config.json", config)
    state = {rename(name): tensor.contiguous() for name, tensor in {**model.state_dict(), **head}.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = write_tokenizer(folder, fast=fast_tokenizer)
    return Tiny(folder, scoring(model, tokenizer, config, head))


def port(folder: Path, rename: Callable[[str], str], *, bias: bool = False) -> Tiny:
    """As the Sentence Transformers port: ELECTRA's own model type, remote code, another name for the head."""
    config = {
        "architectures": ["ElectraForSequenceClassification"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling.ElectraForSequenceClassification"},
        "model_type": "electra",
        "id2label": {"0": "LABEL_0"},
        "sentence_transformers": {"version": "4.1.0"},
    }
    return lightning_ir(folder, config=config, rename=rename, bias=bias)


def classification(folder: Path, labels: int) -> Tiny:
    model = transformers_model(ElectraForSequenceClassification, num_labels=labels)
    model.save_pretrained(folder)
    return Tiny(folder, scoring(model, write_tokenizer(folder), {}, None))


def sharded(folder: Path) -> Tiny:
    tiny = lightning_ir(folder)
    state = load_state(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: state[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return tiny


def pickled(folder: Path) -> Tiny:
    tiny = lightning_ir(folder)
    torch.save(load_state(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return tiny


def backbone(folder: Path, kind: type = ElectraForPreTraining) -> Path:
    """A pre-trained encoder without a scoring head."""
    folder.mkdir(parents=True, exist_ok=True)
    transformers_model(kind).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def load_state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def save_state(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Writes beside the file that is there and replaces it: ``state`` may be mapped from it, as ``load_state``'s is."""
    save_file(dict(state), folder / "new.safetensors", metadata={"format": "pt"})
    (folder / "new.safetensors").replace(folder / "model.safetensors")


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def _electra_prefix(head: str) -> Callable[[str], str]:
    return lambda name: name.replace("linear", head) if name.startswith("linear") else f"electra.{name}"


FORMATS: dict[str, Callable[[Path], Tiny]] = {
    "lightning-ir-hub": lightning_ir,
    "lightning-ir-hub-bias": lambda folder: lightning_ir(folder, bias=True),
    "lightning-ir-006": lambda folder: lightning_ir(folder, config=LIGHTNING_IR_006),
    # The file decides, not the config: it says linear_bias false here.
    "lightning-ir-006-bias": lambda folder: lightning_ir(folder, config=LIGHTNING_IR_006, bias=True),
    "mono-two-rows": lambda folder: lightning_ir(
        folder, config={**LIGHTNING_IR_006, "scoring_strategy": "mono"}, rows=2
    ),
    "mono-two-rows-bias": lambda folder: lightning_ir(
        folder, config={**LIGHTNING_IR_006, "scoring_strategy": "mono"}, rows=2, bias=True
    ),
    "projection": lambda folder: lightning_ir(folder, embedding_size=16),
    "lengths-none": lambda folder: lightning_ir(
        folder, config={**LIGHTNING_IR_006, "query_length": None, "doc_length": None}
    ),
    "port-electra-prefix": lambda folder: port(folder, _electra_prefix("classifier")),
    "port-other-head": lambda folder: port(folder, _electra_prefix("score.out")),
    "port-no-prefix": lambda folder: port(folder, lambda name: name.replace("linear", "head"), bias=True),
    "classification-1": lambda folder: classification(folder, 1),
    "classification-2": lambda folder: classification(folder, 2),
    "sharded": sharded,
    "pytorch-bin": pickled,
    "vocab-txt": lambda folder: lightning_ir(folder, fast_tokenizer=False),
}
