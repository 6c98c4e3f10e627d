"""The checkpoint formats. The weights' names decide which one it is; ``config.json`` gives sizes and lengths.

Weights that are missing, unexpected or of another shape than the configuration says are an error, so that untrained
weights never make a score.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..checks import is_whole
from ..errors import CheckpointError
from .encoder import CrossEncoder, EncoderConfig, HeadKind, PairEncoder, Pooling, without_weights
from .families import FAMILIES, Family
from .folders import SentenceTransformer, listed
from .sets import BACKBONES, Interaction, SetEncoder
from .tokenizer import Lengths

_SETS = "set-encoder"
_LIGHTNING_IR = ("mono", "cross-encoder", _SETS)  # model_type as 0.0.6 writes it, and "cross-encoder" on the hub
_SIZES = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
_LARGEST_SIZE = 2**24  # beyond that it is no size, and no module of it should be made
_ACTIVATION_NAMES = {"gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_new"}

# Buffers and pre-training heads that published files carry beside the weights that score.
_IGNORED = re.compile(
    r"(^|\.)(position_ids|token_type_ids)$"
    r"|^(discriminator|generator)_(predictions|lm_head)\.|^generator_"
    r"|^cls\.(predictions|seq_relationship)\.|^lm_head\.|^vocab_(transform|layer_norm|projector)\."
)
_WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DROP_HEAD = (
    "To train it with a new head in its place, open it with Checkpoint.open(..., new_head_seed=42, drop_head=True)"
)


@dataclass(frozen=True)
class _Head:
    """A head that is known: its kind, and its weights by our names."""

    kind: HeadKind
    weights: Mapping[str, Tensor]
    pooling: Pooling = "first"
    log_probability: bool = False

    @property
    def outputs(self) -> int:
        return len(self.weights["linear.weight" if self.kind == "linear" else "classifier.out_proj.weight"])

    @property
    def bias(self) -> bool:
        return "linear.bias" in self.weights or "classifier.out_proj.bias" in self.weights


def is_lightning_ir(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` is one of Lightning IR's cross-encoders."""
    return config.get("model_type") in _LIGHTNING_IR


def family_of(config: Mapping[str, Any]) -> str | None:
    """The family of BERT-shaped encoders that ``config.json`` names; None: another one."""
    model_type = config.get("backbone_model_type") if is_lightning_ir(config) else config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    return "electra" if is_lightning_ir(config) and any("Electra" in str(name) for name in named) else None


def interaction_of(config: Mapping[str, Any], *, source: str) -> Interaction | None:
    """How the passages of a query see each other; None: they do not.

    Raises:
        CheckpointError: A setting has a value that it cannot have.
    """
    if config.get("model_type") != _SETS:
        return None
    depth, extra_token = config.get("depth", Interaction.depth), config.get("add_extra_token", False)
    if not is_size(depth):
        raise CheckpointError(f"{source}: depth must be a whole number of at least 1, got {depth!r} in config.json.")
    if not isinstance(extra_token, bool):
        raise CheckpointError(f"{source}: add_extra_token must be true or false, got {extra_token!r} in config.json.")
    return Interaction(depth, extra_token)


def build_encoder(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    source: str,
    modules: SentenceTransformer | None = None,
    new_head_seed: int | None = None,
    drop_head: bool = False,
) -> PairEncoder:
    """The cross-encoder that holds the weights.

    Args:
        config: ``config.json``.
        weights: Tensors by name, in any of the formats.
        source: The checkpoint's name, for messages.
        modules: What Sentence Transformers' ``modules.json`` says of the folder, where there is one.
        new_head_seed: Seed of a new linear head for weights that have none; None: a missing head is an error.
        drop_head: With a seed: a head that is not known makes way for the new one, with a warning.

    Raises:
        CheckpointError: The weights are not those of a cross-encoder of the configured sizes.
    """
    name = family_of(config)
    interaction = interaction_of(config, source=source)
    if interaction is not None and name not in BACKBONES:
        raise CheckpointError(
            f"{source}: backbone_model_type of a set encoder must be one of {', '.join(BACKBONES)}, got "
            f"{config.get('backbone_model_type')!r} in config.json."
        )
    if name is None:
        from .automodel import TransformersEncoder  # loads transformers, which the written-out encoder does without

        return TransformersEncoder.build(
            config, weights, source=source, modules=modules, new_head_seed=new_head_seed, drop_head=drop_head
        )
    family = FAMILIES[name]
    shape = _encoder_config(config, family, name, source)
    weights = {family.ours(name): tensor for name, tensor in weights.items()}
    weights = {name: tensor for name, tensor in weights.items() if not _IGNORED.search(name)}
    check_types(weights, source)
    backbone = _names_and_shapes(shape, weights)
    complaints = _complaints(backbone, weights)
    left = {name: tensor for name, tensor in weights.items() if name not in backbone}
    has_new_head = False
    head = _recognise_head(config, family, left, shape.hidden_size, modules)
    if head is None:
        # A pooler without a classifier is a left-over of pre-training.
        unknown = {name: tensor for name, tensor in left.items() if not name.startswith("pooler.")}
        if modules is not None:
            unknown.update(modules.unknown_head())
        if new_head_seed is None:
            complaints.append(_about_head(config, unknown, modules))
        elif unknown and not drop_head:
            complaints.append(f"{_about_head(config, unknown, modules)}. {_DROP_HEAD}")
        else:
            if unknown and not complaints:
                warn_of_dropped(unknown, source)
            head = _Head("linear", {"linear.weight": _new_head(shape, new_head_seed)})
            has_new_head = True
    if complaints:
        raise CheckpointError(f"{source} cannot be opened as a re-ranker: {'; '.join(complaints)}.")
    assert head is not None
    made: dict[str, Any] = {"pooling": head.pooling, "log_probability": head.log_probability}
    with without_weights():
        encoder = (
            CrossEncoder(shape, head.kind, head.outputs, head.bias, **made)
            if interaction is None
            else SetEncoder(shape, head.kind, head.outputs, head.bias, **made, interaction=interaction)
        )
    # The file's own tensors become the parameters: no second copy of the weights.
    ours = {name: weights[name] for name in backbone} | dict(head.weights)
    encoder.load_state_dict({name: tensor.float() for name, tensor in ours.items()}, assign=True)
    encoder.has_new_head = has_new_head
    return encoder


def check_types(weights: Mapping[str, Tensor], source: str) -> None:
    """Whether all weights are floating-point numbers of 16 bits or more.

    Raises:
        CheckpointError: One is not, as in a quantised checkpoint, whose scales are elsewhere.
    """
    wrong = [f"{name} ({str(t.dtype).removeprefix('torch.')})" for name, t in weights.items() if _no_weight(t)]
    if wrong:
        raise CheckpointError(
            f"{source} cannot be opened as a re-ranker: weights must be floating-point numbers of 16 bits or more, got "
            f"{listed(wrong)}. Use the checkpoint as it was before it was quantised."
        )


def warn_of_dropped(head: Mapping[str, Tensor], source: str) -> None:
    """Says which trained weights a new head replaces."""
    warnings.warn(f"{source}: its head is dropped, and training starts with a new one: {_shapes(head)}.", stacklevel=5)


def _no_weight(tensor: Tensor) -> bool:
    return tensor.dtype not in _WEIGHT_TYPES


def _names_and_shapes(shape: EncoderConfig, weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """What the backbone's weights should be."""
    held = {found[1] for name in weights if (found := re.match(r"encoder\.layer\.(\d+)\.", name))}
    # One layer more than there is shows what is missing; a million would be made for as long.
    shape = replace(shape, num_hidden_layers=min(shape.num_hidden_layers, len(held) + 1))
    with without_weights():
        return {n: t.shape for n, t in CrossEncoder(shape).state_dict().items() if n != "linear.weight"}


def _encoder_config(config: Mapping[str, Any], family: Family, model_type: str, source: str) -> EncoderConfig:
    def stated(name: str) -> Any:
        value = config.get(family.setting(name))
        return family.defaults.get(name) if value is None else value

    missing = [family.setting(name) for name in _SIZES if not isinstance(stated(name), int)]
    if is_lightning_ir(config):  # null is allowed there: nothing is cut
        missing += [key for key in ("query_length", "doc_length") if key not in config]
    if missing:
        raise CheckpointError(f"{source}: config.json lacks {', '.join(dict.fromkeys(missing))} (whole numbers).")
    for key, allowed in (
        ("position_embedding_type", ("absolute",)),
        ("pooling_strategy", ("first", "mean", "max", "sum")),
        ("_bert_pool", (False, True)),
        ("use_adapter", (False,)),
        ("tokenizer_pattern", (None,)),
        ("scoring_strategy", ("rank", "mono")),
        ("is_decoder", (False,)),
        ("add_cross_attention", (False,)),
    ):
        if key in config and config[key] not in allowed:
            raise CheckpointError(
                f"{source}: {key} is {config[key]!r} in config.json; this re-ranker knows "
                f"{' and '.join(map(repr, allowed))}."
            )
    values = {field.name: stated(field.name) for field in fields(EncoderConfig) if field.name != "model_type"}
    values = {name: value for name, value in values.items() if value is not None}
    activation = values.get("hidden_act")
    if isinstance(activation, str):
        values["hidden_act"] = _ACTIVATION_NAMES.get(activation, activation)
    for name, value in values.items():
        rule = _broken_rule(name, value)
        if rule is not None:
            raise CheckpointError(f"{source}: {family.setting(name)} must be {rule}, got {value!r} in config.json.")
    try:
        shape = EncoderConfig(**values, model_type=model_type)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    for name, rule, holds in (
        ("pad_token_id", f"below vocab_size ({shape.vocab_size})", shape.pad_token_id < shape.vocab_size),
        (
            "max_position_embeddings",
            f"above the {shape.first_position} rows that are not used",
            shape.max_position_embeddings > shape.first_position,
        ),
    ):
        if not holds:
            raise CheckpointError(f"{source}: {name} must be {rule}, got {getattr(shape, name)!r} in config.json.")
    return shape


def _broken_rule(name: str, value: Any) -> str | None:
    """What a setting of ``config.json`` has to be and is not."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if name in _SIZES:
        return None if is_size(value) else f"a whole number from 1 to {_LARGEST_SIZE:,}"
    if name in ("type_vocab_size", "pad_token_id"):
        return None if (value == 0 and type(value) is int) or is_size(value) else "a whole number of at least 0"
    if name == "hidden_act":
        return None if isinstance(value, str) else "the name of an activation"
    if name == "layer_norm_eps":
        return None if number and 0 < value < 1 else "a number between 0 and 1"
    if name == "initializer_range":
        return None if number and value >= 0 else "a number of at least 0"
    return None if number and 0 <= value <= 1 else "a probability"  # dropouts


def is_size(value: Any) -> bool:
    """Whether a value of ``config.json`` can be a number of units."""
    return isinstance(value, int) and is_whole(value, least=1) and value <= _LARGEST_SIZE


def _complaints(expected: Mapping[str, torch.Size], weights: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in weights]
    misshapen = [
        f"{name} is {list(weights[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    return [f"{what}: {listed(names)}" for what, names in (("missing", missing), ("wrong shape", misshapen)) if names]


def _about_head(config: Mapping[str, Any], head: Mapping[str, Tensor], modules: SentenceTransformer | None) -> str:
    if not head:
        if modules is not None and modules.is_modular:
            return (
                f"modules.json names {', '.join(modules.names)}, which end in no score: this is an encoder of single "
                f"texts, not a cross-encoder"
            )
        return (
            "it is a backbone without a scoring head (no linear.weight, no classifier) and would rank at random; train "
            "it first, or choose a trained checkpoint such as webis/monoelectra-base"
        )
    strategy = config.get("scoring_strategy", "rank")
    return (
        f"unexpected: {_shapes(head)}, which is not a head that this re-ranker knows for scoring_strategy {strategy!r}"
    )


def _shapes(weights: Mapping[str, Tensor]) -> str:
    return listed(f"{name} {list(tensor.shape)}" for name, tensor in weights.items())


def _recognise_head(
    config: Mapping[str, Any],
    family: Family,
    left: Mapping[str, Tensor],
    hidden: int,
    modules: SentenceTransformer | None,
) -> _Head | None:
    """The head in what is left beside the backbone; None: there is none, or none that is known."""
    if modules is not None and modules.is_modular:
        others = [name for name in left if not name.startswith("pooler.")]
        return None if others else _dense_modules(modules, hidden)
    shapes = {name: tuple(tensor.shape) for name, tensor in left.items()}
    if is_lightning_ir(config):
        return _lightning_ir_head(config, left, shapes, hidden)
    if family.head != "bert":  # only BERT's own head reads its pooler
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("pooler.")}
    expected = {f"{part}.{kind}" for part in (family.dense, family.projection) for kind in ("weight", "bias")}
    if set(shapes) == expected:
        labels = shapes[f"{family.projection}.bias"][0] if shapes[f"{family.projection}.bias"] else 0
        fits = [shapes[f"{family.dense}.weight"], shapes[f"{family.dense}.bias"]] == [(hidden, hidden), (hidden,)]
        if not fits or labels not in (1, 2) or shapes[f"{family.projection}.weight"] != (labels, hidden):
            return None
        renamed = {family.dense: "classifier.dense", family.projection: "classifier.out_proj"}
        weights = {f"{renamed[stem]}.{kind}": left[f"{stem}.{kind}"] for stem in renamed for kind in ("weight", "bias")}
        return _Head(family.head, weights)
    # A port of monoELECTRA under another name: one row, perhaps a bias, and nothing else.
    if family.prefix == "electra" and sorted(shapes.values(), key=len) in ([(1, hidden)], [(1,), (1, hidden)]):
        named = {name: "linear.weight" if len(shape) == 2 else "linear.bias" for name, shape in shapes.items()}
        return _Head("linear", {ours: left[name] for name, ours in named.items()})
    return None


def _lightning_ir_head(
    config: Mapping[str, Any], left: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], hidden: int
) -> _Head | None:
    mono = config.get("scoring_strategy") == "mono"
    rows = 2 if mono else 1
    pool = {"bert_pool.0.weight": (hidden, hidden), "bert_pool.0.bias": (hidden,)} if config.get("_bert_pool") else {}
    expected: dict[str, tuple[int, ...]] = {"linear.weight": (rows, hidden), **pool}
    if "linear.bias" in shapes:
        expected["linear.bias"] = (rows,)
    if shapes != expected:
        return None
    pooling: Pooling = config.get("pooling_strategy", "first")
    if not pool:
        return _Head("linear", left, pooling, log_probability=mono)
    weights = {
        name.replace("bert_pool.0", "classifier.dense").replace("linear", "classifier.out_proj"): tensor
        for name, tensor in left.items()
    }
    return _Head("bert", weights, pooling, log_probability=mono)


_AFTER_DENSE: dict[str, HeadKind] = {"GELU": "classification", "Tanh": "bert", "ReLU": "distilbert"}
"""Which of our heads has the activation of a Dense module, by the last name of its type."""


def _dense_modules(modules: SentenceTransformer, hidden: int) -> _Head | None:
    """One or two Dense modules of Sentence Transformers as a head."""
    if modules.pooling is None or not 1 <= len(modules.dense) <= 2:
        return None
    *inner, last = modules.dense
    if last.activation != "Identity" or last.weight.shape not in ((1, hidden), (2, hidden)):
        return None
    bias = {} if last.bias is None else {"bias": last.bias}
    if not inner:
        weights = {f"linear.{kind}": tensor for kind, tensor in ({"weight": last.weight} | bias).items()}
        return _Head("linear", weights, modules.pooling)
    (first,) = inner
    if first.activation not in _AFTER_DENSE or first.weight.shape != (hidden, hidden):
        return None
    return _Head(
        _AFTER_DENSE[first.activation],
        {
            "classifier.dense.weight": first.weight,
            "classifier.dense.bias": torch.zeros(hidden) if first.bias is None else first.bias,
            **{f"classifier.out_proj.{kind}": tensor for kind, tensor in ({"weight": last.weight} | bias).items()},
        },
        modules.pooling,
    )


def _new_head(config: EncoderConfig, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(1, config.hidden_size).normal_(0.0, config.initializer_range, generator=generator)


def lengths_of(config: Mapping[str, Any], positions: int | None, stated: Sequence[Any]) -> Lengths:
    """How many tokens are read.

    Args:
        config: ``config.json``: Lightning IR's states one length for queries and one for passages.
        positions: How many the encoder can read; None: any number.
        stated: What the other files say of a whole pair (None: nothing); where the two lengths are stated, it is of
            no account.
    """
    query, doc = config.get("query_length"), config.get("doc_length")
    limits = [] if positions is None else [positions]
    if query is None or doc is None:
        # transformers writes 1e30 for "any number".
        limits += [int(limit) for limit in stated if isinstance(limit, int | float) and limit >= 1]
    return Lengths(query=query, doc=doc, pair=min(limits, default=_LARGEST_SIZE))
