"""The families of BERT-shaped encoders: how each calls the sizes and the weights of the one encoder that we have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .encoder import HeadKind

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Family:
    """A family's names in ``transformers``.

    Args:
        architecture: Its class with a head.
        prefix: What the names of the backbone's weights begin with there.
        head: Its own head.
        dense: The name of the head's dense layer.
        projection: The name of the head's last layer.
        layers: What the names of its layers begin with.
        parts: Our name of a layer's part: theirs, where they differ.
        settings: Our name of a setting of ``config.json``: theirs, where they differ.
        defaults: Settings that its ``config.json`` may leave out, or that its like do not have.
        tokenizer: Its tokenizer's class.
    """

    architecture: str
    prefix: str
    head: HeadKind
    dense: str = "classifier.dense"
    projection: str = "classifier.out_proj"
    layers: str = "encoder.layer"
    parts: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    settings: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    defaults: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    tokenizer: str = "BertTokenizer"

    def ours(self, name: str) -> str:
        """Our name of a weight; what is not part of a layer keeps its name, without the prefix."""
        name = name.removeprefix(f"{self.prefix}.")
        # As the oldest checkpoints of BERT have it.
        name = re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{_OLD_NAMES[m[1]]}", name)
        found = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            return name
        number, part, kind = found.groups()
        ours = {theirs: ours for ours, theirs in self.parts.items()}
        return f"encoder.layer.{number}.{ours.get(part, part)}.{kind}"

    def theirs(self, name: str) -> str:
        """Their name of one of our weights, with the prefix."""
        for ours, theirs in (("classifier.dense", self.dense), ("classifier.out_proj", self.projection)):
            if name.startswith(f"{ours}."):
                # BERT's pooler belongs to its backbone.
                inside = f"{self.prefix}." if theirs.startswith("pooler.") else ""
                return inside + theirs + name[len(ours) :]
        return f"{self.prefix}.{self.backbone_name(name)}"

    def backbone_name(self, name: str) -> str:
        """Their name of one of our weights of the backbone, without the prefix."""
        found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            return name
        number, part, kind = found.groups()
        return f"{self.layers}.{number}.{self.parts.get(part, part)}.{kind}"

    def setting(self, name: str) -> str:
        """What ``config.json`` calls a setting."""
        return self.settings.get(name, name)


_OLD_NAMES = {"gamma": "weight", "beta": "bias"}
_HIDDEN = {"embedding_size": "hidden_size"}  # only ELECTRA's embeddings may have a size of their own

FAMILIES: dict[str, Family] = {
    "electra": Family(
        architecture="ElectraForSequenceClassification",
        prefix="electra",
        head="classification",
        tokenizer="ElectraTokenizer",
    ),
    "bert": Family(
        architecture="BertForSequenceClassification",
        prefix="bert",
        head="bert",
        dense="pooler.dense",
        projection="classifier",
        settings=_HIDDEN,
        tokenizer="BertTokenizer",
    ),
    "roberta": Family(
        architecture="RobertaForSequenceClassification",
        prefix="roberta",
        head="roberta",
        settings=_HIDDEN,
        defaults={"pad_token_id": 1},
        tokenizer="RobertaTokenizer",
    ),
    "xlm-roberta": Family(
        architecture="XLMRobertaForSequenceClassification",
        prefix="roberta",
        head="roberta",
        settings=_HIDDEN,
        defaults={"pad_token_id": 1},
        tokenizer="XLMRobertaTokenizer",
    ),
    "distilbert": Family(
        architecture="DistilBertForSequenceClassification",
        prefix="distilbert",
        head="distilbert",
        dense="pre_classifier",
        projection="classifier",
        layers="transformer.layer",
        parts={
            "attention.self.query": "attention.q_lin",
            "attention.self.key": "attention.k_lin",
            "attention.self.value": "attention.v_lin",
            "attention.output.dense": "attention.out_lin",
            "attention.output.LayerNorm": "sa_layer_norm",
            "intermediate.dense": "ffn.lin1",
            "output.dense": "ffn.lin2",
            "output.LayerNorm": "output_layer_norm",
        },
        settings={
            "embedding_size": "dim",
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "classifier_dropout": "seq_classif_dropout",
        },
        defaults={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
        tokenizer="DistilBertTokenizer",
    ),
}
"""By ``model_type``."""
