"""The checkpoint formats. The weights' names decide which one it is; ``config.json`` gives sizes and lengths.

Weights that are missing, unexpected or of another shape than the configuration says are an error, so that untrained
weights never make a score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .encoder import CrossEncoder, EncoderConfig, HeadKind
from .folders import listed
from .tokenizer import Lengths

_LIGHTNING_IR = ("mono", "cross-encoder")  # model_type as 0.0.6 writes it, and as on the hub
_REQUIRED = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
# Buffers and pre-training heads that published files contain in addition to the weights for scoring.
_IGNORED = re.compile(r"(^|\.)position_ids$|^(discriminator|generator)_(predictions|lm_head)\.|^generator_")


def _bare_name(name: str) -> str:
    """A weight's name as in Lightning IR: the backbone's own, without its prefix."""
    return re.sub(r"^(electra|bert)\.", "", name)


def build_encoder(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], *, source: str, new_head_seed: int | None = None
) -> CrossEncoder:
    """The cross-encoder with the given weights.

    Args:
        config: ``config.json``.
        weights: Tensors by name, in any of the formats.
        source: The checkpoint's name, for messages.
        new_head_seed: Seed of a new linear head for weights that have none; None: a missing head is an error.

    Raises:
        CheckpointError: The weights are not those of an ELECTRA cross-encoder of the configured sizes.
    """
    shape = _encoder_config(config, source, allow_bert=new_head_seed is not None)
    weights = {_bare_name(name): tensor for name, tensor in weights.items()}
    weights = {name: tensor for name, tensor in weights.items() if not _IGNORED.search(name)}
    with torch.device("meta"):  # names and shapes only: no memory, no random numbers
        backbone = {n: t.shape for n, t in CrossEncoder(shape).state_dict().items() if n != "linear.weight"}
    complaints = _complaints(backbone, weights)
    head = {name: tensor for name, tensor in weights.items() if name not in backbone}
    kind, names = _recognise_head(config, head, shape.hidden_size)
    if kind is None and new_head_seed is not None:
        # A pooler, or a head for another task, is replaced by the new head.
        kind, head = "linear", {"linear.weight": _new_head(shape, new_head_seed)}
        weights = {name: tensor for name, tensor in weights.items() if name in backbone} | head
    if kind is None:
        complaints.append(_about_head(config, head))
    if complaints:
        raise CheckpointError(f"{source} cannot be opened as a re-ranker: {'; '.join(complaints)}.")

    weights = {names.get(name, name): tensor.float() for name, tensor in weights.items()}
    outputs = weights["linear.weight" if kind == "linear" else "classifier.out_proj.weight"].shape[0]
    with torch.device("meta"):
        encoder = CrossEncoder(shape, kind or "linear", outputs, head_bias="linear.bias" in weights)
    # The file's own tensors become the parameters: no second copy of the weights.
    encoder.load_state_dict(weights, assign=True)
    return encoder


def _encoder_config(config: Mapping[str, Any], source: str, *, allow_bert: bool) -> EncoderConfig:
    model_type = config.get("model_type")
    backbone = config.get("backbone_model_type") if model_type in _LIGHTNING_IR else model_type
    architectures = config.get("architectures") or []
    is_electra = backbone == "electra" or any("Electra" in str(name) for name in architectures)
    if not is_electra and not (allow_bert and backbone == "bert"):
        raise CheckpointError(
            f"{source} is no ELECTRA checkpoint: model_type is {model_type!r}, its backbone {backbone!r}. "
            f"This re-ranker opens monoELECTRA checkpoints (Lightning IR, Sentence Transformers, transformers)."
        )
    # BERT's encoder is ELECTRA's with embeddings of the hidden size; its config.json does not state that.
    config = {"embedding_size": config.get("hidden_size"), **config} if backbone == "bert" else config
    missing = [key for key in _REQUIRED if not isinstance(config.get(key), int)]
    if model_type in _LIGHTNING_IR:  # null is allowed there and means no truncation
        missing += [key for key in ("query_length", "doc_length") if key not in config]
    if missing:
        raise CheckpointError(f"{source}: config.json lacks {', '.join(missing)} (whole numbers).")
    for key, allowed in (
        ("position_embedding_type", ("absolute",)),
        ("pooling_strategy", ("first",)),
        ("_bert_pool", (False,)),
        ("use_adapter", (False,)),
        ("tokenizer_pattern", (None,)),
        ("scoring_strategy", ("rank", "mono")),
    ):
        if key in config and config[key] not in allowed:
            raise CheckpointError(
                f"{source}: {key} is {config[key]!r} in config.json; this re-ranker knows "
                f"{' and '.join(map(repr, allowed))}."
            )
    known = {field.name for field in fields(EncoderConfig)}
    try:
        return EncoderConfig(**{key: value for key, value in config.items() if key in known and value is not None})
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _complaints(expected: Mapping[str, torch.Size], weights: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in weights]
    misshapen = [
        f"{name} is {list(weights[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    return [f"{what}: {listed(names)}" for what, names in (("missing", missing), ("wrong shape", misshapen)) if names]


def _about_head(config: Mapping[str, Any], head: Mapping[str, Tensor]) -> str:
    if not head:
        return (
            "it is a backbone without a scoring head (no linear.weight, no classifier) and would rank at random; train "
            "it first, or choose a trained checkpoint such as webis/monoelectra-base"
        )
    shapes = listed(f"{name} {list(tensor.shape)}" for name, tensor in head.items())
    strategy = config.get("scoring_strategy", "rank")
    return f"unexpected: {shapes}, which is no head that this re-ranker knows for scoring_strategy {strategy!r}"


def _recognise_head(
    config: Mapping[str, Any], head: Mapping[str, Tensor], hidden: int
) -> tuple[HeadKind | None, dict[str, str]]:
    """The head's kind (None: unknown), and our names for its tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
    rows = 2 if config.get("scoring_strategy") == "mono" else 1
    if shapes.get("linear.weight") == (rows, hidden) and shapes.get("linear.bias", (rows,)) == (rows,):
        return ("linear" if set(shapes) <= {"linear.weight", "linear.bias"} else None), {}
    if set(shapes) == {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}:
        labels = shapes["classifier.out_proj.bias"][0]
        fits = shapes == {
            "classifier.dense.weight": (hidden, hidden),
            "classifier.dense.bias": (hidden,),
            "classifier.out_proj.weight": (labels, hidden),
            "classifier.out_proj.bias": (labels,),
        }
        return ("classification" if fits and labels in (1, 2) else None), {}
    # A port under another name: one row, perhaps a bias, and nothing else.
    if config.get("model_type") not in _LIGHTNING_IR and sorted(shapes.values(), key=len) in (
        [(1, hidden)],
        [(1,), (1, hidden)],
    ):
        return "linear", {name: "linear.weight" if len(shape) == 2 else "linear.bias" for name, shape in shapes.items()}
    return None, {}


def _new_head(config: EncoderConfig, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(1, config.hidden_size).normal_(0.0, config.initializer_range, generator=generator)


def lengths_of(config: Mapping[str, Any], positions: int) -> Lengths:
    """The lengths that ``config.json`` states; without them, a pair fills the encoder's positions."""
    return Lengths(query=config.get("query_length"), doc=config.get("doc_length"), pair=positions)
