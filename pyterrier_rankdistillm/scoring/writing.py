"""How a checkpoint is written: Lightning IR's format, transformers' names, and Sentence Transformers' modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .encoder import CrossEncoder, PairEncoder
from .families import FAMILIES, Family
from .sets import SetEncoder
from .tokenizer import Lengths, PairTokenizer


def fits_lightning_ir(encoder: PairEncoder) -> bool:
    """Whether Lightning IR's formats can hold a model: a linear head, perhaps after a pooler like BERT's."""
    if not isinstance(encoder, CrossEncoder):
        return False
    return encoder.head_kind in ("linear", "bert") and encoder.log_probability == (encoder.outputs == 2)


def is_lightning_ir_own(encoder: PairEncoder) -> bool:
    """Whether that is the format to choose: it fits, and the model is not one that transformers has by itself."""
    if not isinstance(encoder, CrossEncoder) or not fits_lightning_ir(encoder):
        return False
    if encoder.sees_lists:  # nobody else has it
        return True
    own = encoder.head_kind == FAMILIES[encoder.config.model_type].head and encoder.head_bias
    return encoder.log_probability or not own


def lightning_ir(folder: Path, encoder: PairEncoder, tokenizer: PairTokenizer) -> None:
    """Writes what Lightning IR 0.0.6 opens.

    Raises:
        ValueError: It cannot hold this model.
    """
    if not isinstance(encoder, CrossEncoder) or not fits_lightning_ir(encoder):
        raise ValueError(
            f"Checkpoint.save: format 'lightning-ir' cannot hold a {encoder.head_kind!r} head with {encoder.outputs} "
            f"rows. Use format='transformers'."
        )
    family = FAMILIES[encoder.config.model_type]
    lengths = tokenizer.lengths
    bert_pool = encoder.head_kind != "linear"
    sets = _about_sets(encoder)
    kind = "SetEncoder" if sets else "Mono"
    config = _shape(encoder, family) | {
        "architectures": [f"{kind}{family.architecture.removesuffix('ForSequenceClassification')}Model"],
        "model_type": "set-encoder" if sets else "mono",
        "backbone_model_type": encoder.config.model_type,
        "pooling_strategy": encoder.pooling,
        "_bert_pool": bert_pool,
        "scoring_strategy": "mono" if encoder.log_probability else "rank",
        "linear_bias": encoder.head_bias,
        "tokenizer_pattern": None,
        "query_length": lengths.query,
        "doc_length": lengths.doc,
        "dtype": "float32",
        **sets,
    }
    if not bert_pool:
        config.pop("_bert_pool")
    _write_json(folder / "config.json", config)
    renamed = {"classifier.dense": "bert_pool.0", "classifier.out_proj": "linear"}

    def theirs(name: str) -> str:
        stem, _, kind = name.rpartition(".")
        return f"{renamed[stem]}.{kind}" if stem in renamed else family.backbone_name(name)

    state = {theirs(name): tensor for name, tensor in encoder.state_dict().items()}
    _write_weights(folder / "model.safetensors", state)
    _write_tokenizer(
        folder,
        tokenizer,
        backbone_tokenizer_class=f"{family.tokenizer}Fast",
        tokenizer_class="SetEncoderTokenizer" if sets else "CrossEncoderTokenizer",
        model_max_length=lengths.pair,
        query_length=lengths.query,
        doc_length=lengths.doc,
        **({"add_extra_token": sets["add_extra_token"]} if sets else {}),
    )


def _about_sets(encoder: CrossEncoder) -> dict[str, Any]:
    """What ``config.json`` says of a set encoder; empty for others."""
    if not isinstance(encoder, SetEncoder):
        return {}
    return {
        "depth": encoder.interaction.depth,
        "add_extra_token": encoder.interaction.extra_token,
        "sample_missing_docs": False,  # it would fill lists up to ``depth`` with random vectors: other scores each time
    }


def transformers(folder: Path, encoder: PairEncoder, tokenizer: PairTokenizer) -> None:
    """Writes what transformers and Sentence Transformers open, with equal scores.

    Raises:
        ValueError: Neither can hold this model.
    """
    if not isinstance(encoder, CrossEncoder):
        _save_module(folder, encoder, tokenizer)
        return
    if encoder.sees_lists:
        raise ValueError(
            "Checkpoint.save: format 'transformers' cannot hold a set encoder: neither transformers nor Sentence "
            "Transformers scores the passages of a query together. Use format='lightning-ir'."
        )
    family = FAMILIES[encoder.config.model_type]
    config = _shape(encoder, family) | {
        "model_type": encoder.config.model_type,
        "query_length": tokenizer.lengths.query,
        "doc_length": tokenizer.lengths.doc,
        "dtype": "float32",
    }
    head = _own_head(encoder, family)
    backbone = {
        name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith(("linear.", "classifier."))
    }
    if head is None:
        config["architectures"] = [f"{family.architecture.removesuffix('ForSequenceClassification')}Model"]
        state = {family.backbone_name(name): tensor for name, tensor in backbone.items()}
        _write_modules(folder, encoder)
    else:
        labels = range(len(head["classifier.out_proj.bias"]))
        config |= {
            "architectures": [family.architecture],
            "id2label": {str(i): f"LABEL_{i}" for i in labels},
            "label2id": {f"LABEL_{i}": i for i in labels},
        }
        state = {family.theirs(name): tensor for name, tensor in {**backbone, **head}.items()}
    _write_json(folder / "config.json", config)
    _write_weights(folder / "model.safetensors", state)
    _write_tokenizer(
        folder,
        tokenizer,
        tokenizer_class=_tokenizer_class(tokenizer, family),
        model_max_length=pair_length(tokenizer.lengths),
        query_length=tokenizer.lengths.query,
        doc_length=tokenizer.lengths.doc,
        model_input_names=_input_names(encoder),
    )


def pair_length(lengths: Lengths) -> int:
    """Where a pair is cut if it can be cut at one length only: as long as a pair can get that both lengths leave."""
    if lengths.query is None or lengths.doc is None:
        return lengths.pair
    return lengths.query + lengths.doc + lengths.special_tokens


def _own_head(encoder: CrossEncoder, family: Family) -> dict[str, Tensor] | None:
    """The family's own head with equal scores; None: there is none."""
    if encoder.pooling != "first" or encoder.log_probability:
        return None
    state = encoder.state_dict()
    if encoder.head_kind == family.head:
        head = {name: tensor for name, tensor in state.items() if name.startswith("classifier.")}
        head.setdefault("classifier.out_proj.bias", torch.zeros(encoder.outputs))
        return head
    if encoder.head_kind != "linear" or family.head not in ("classification", "distilbert"):
        return None
    # gelu(x) - gelu(-x) = x, and so for relu: two rows of the dense layer, w and -w, carry x = w v through it.
    weight, hidden = state["linear.weight"], encoder.config.hidden_size  # (outputs, hidden)
    rows = encoder.outputs
    dense, projection = torch.zeros(hidden, hidden), torch.zeros(rows, hidden)
    dense[:rows], dense[rows : 2 * rows] = weight, -weight
    projection[:, :rows], projection[:, rows : 2 * rows] = torch.eye(rows), -torch.eye(rows)
    return {
        "classifier.dense.weight": dense,
        "classifier.dense.bias": torch.zeros(hidden),
        "classifier.out_proj.weight": projection,
        "classifier.out_proj.bias": state.get("linear.bias", torch.zeros(rows)),
    }


_POOLINGS = {"first": "cls", "mean": "mean", "max": "max"}
_BASE = "sentence_transformers.models"


def _write_modules(folder: Path, encoder: CrossEncoder) -> None:
    """Sentence Transformers' Pooling and Dense modules beside a Transformer in the folder itself."""
    if encoder.pooling not in _POOLINGS or encoder.head_kind not in ("linear", "bert") or encoder.log_probability:
        what = f"pooling {encoder.pooling!r}" if encoder.pooling not in _POOLINGS else "a log-probability as its score"
        raise ValueError(
            f"Checkpoint.save: format 'transformers' cannot hold {what}: neither transformers nor Sentence "
            f"Transformers computes it. Use format='lightning-ir'."
        )
    hidden, state = encoder.config.hidden_size, encoder.state_dict()
    stems = ["linear"] if encoder.head_kind == "linear" else ["classifier.dense", "classifier.out_proj"]
    kinds = ["Transformer", "Pooling", *["Dense"] * len(stems)]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], start=1))]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_BASE}.{kind}"}
        for number, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"transformer_task": "feature-extraction"})
    _write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity", "prompts": {}},
    )
    pooling = {
        "word_embedding_dimension": hidden,
        **{
            f"pooling_mode_{name}": _POOLINGS[encoder.pooling] == mode
            for name, mode in (("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", "max"))
        },
    }
    (folder / paths[1]).mkdir()
    _write_json(folder / paths[1] / "config.json", pooling)
    for stem, path in zip(stems, paths[2:], strict=True):
        (folder / path).mkdir()
        names = [f"{stem}.{kind}" for kind in ("weight", "bias")]
        weights = {name.replace(stem, "linear"): state[name] for name in names if name in state}
        last = stem == stems[-1]
        dense = {
            "in_features": weights["linear.weight"].shape[1],
            "out_features": weights["linear.weight"].shape[0],
            "bias": "linear.bias" in weights,
            "activation_function": "torch.nn.modules.linear.Identity" if last else "torch.nn.modules.activation.Tanh",
            "module_input_name": "sentence_embedding",
            "module_output_name": "scores" if last else "sentence_embedding",
        }
        _write_json(folder / path / "config.json", dense)
        _write_weights(folder / path / "model.safetensors", weights)


def _save_module(folder: Path, encoder: Any, tokenizer: PairTokenizer) -> None:
    """A model of transformers, by itself."""
    encoder.model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.chmod((folder / "config.json").stat().st_mode)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    lengths = tokenizer.lengths
    _write_json(folder / "config.json", config | {"query_length": lengths.query, "doc_length": lengths.doc})
    _write_tokenizer(
        folder,
        tokenizer,
        tokenizer_class=_tokenizer_class(tokenizer, None),
        model_max_length=pair_length(lengths),
        query_length=lengths.query,
        doc_length=lengths.doc,
        model_input_names=["input_ids", *(["token_type_ids"] if encoder.token_types else []), "attention_mask"],
    )


def _shape(encoder: CrossEncoder, family: Family) -> dict[str, Any]:
    """The encoder's sizes by the family's names."""
    values = {family.setting(name): value for name, value in asdict(encoder.config).items() if name != "model_type"}
    if values.get("classifier_dropout", 0) is None:
        del values["classifier_dropout"]
    return {**values, "position_embedding_type": "absolute"}


def _input_names(encoder: CrossEncoder) -> list[str]:
    return ["input_ids", *(["token_type_ids"] if encoder.token_types else []), "attention_mask"]


def _tokenizer_class(tokenizer: PairTokenizer, family: Family | None) -> str:
    """The class that the checkpoint named, where it is one of transformers' that reads ``tokenizer.json`` as it is."""
    stated = tokenizer.config.get("tokenizer_class")
    if family is not None and family.tokenizer in ("ElectraTokenizer", "BertTokenizer", "DistilBertTokenizer"):
        return family.tokenizer
    return stated if isinstance(stated, str) and stated != "CrossEncoderTokenizer" else "PreTrainedTokenizerFast"


def _write_tokenizer(folder: Path, tokenizer: PairTokenizer, **settings: Any) -> None:
    _write_json(folder / "tokenizer_config.json", {**tokenizer.config, **settings})
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    vocab = tokenizer.tokenizer.get_vocab(with_added_tokens=False)
    if "[CLS]" not in vocab:
        return
    # WordPiece, which has files of its own from before tokenizer.json.
    lines = "".join(f"{t}\n" for t in sorted(vocab, key=vocab.__getitem__))
    (folder / "vocab.txt").write_bytes(lines.encode("utf-8"))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    _write_json(folder / "special_tokens_map.json", special)


def _write_weights(file: Path, weights: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file, metadata={"format": "pt"})
    file.chmod((file.parent / "config.json").stat().st_mode)  # safetensors makes files that only the owner reads


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
