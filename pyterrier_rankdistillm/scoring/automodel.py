"""Encoders that are not written out here: ``transformers``' own module behind the same interface.

For all that it knows as encoder-only sequence classification (ModernBERT, DeBERTa, ALBERT, ...). The module is built
and filled by ``transformers``; batches, cuts, precision and packed layers are this package's. Code that comes with a
checkpoint is never run: only the configuration and the tensors are given to ``transformers``, never the folder.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto as auto

from ..errors import CheckpointError
from .encoder import LinearMap, PairEncoder
from .folders import SentenceTransformer, listed
from .formats import check_types, is_size, warn_of_dropped

_MOST_LAYERS = 1_000
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

_OF_NO_ACCOUNT = ("_name_or_path", "architectures", "transformers_version", "dtype", "query_length", "doc_length")
"""Settings that scores do not follow from; lengths are the tokenizer's."""


class TransformersEncoder(PairEncoder):
    """A model for sequence classification of ``transformers``, with one or two labels.

    Args:
        model: The model; its weights become this module's.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.head_kind = type(model).__name__
        self.outputs = int(model.config.num_labels)
        self.computes: torch.dtype | None = None  # in half precision
        self.reads_types = "token_type_ids" in inspect.signature(model.forward).parameters

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        *,
        source: str,
        modules: SentenceTransformer | None = None,
        new_head_seed: int | None = None,
        drop_head: bool = False,
    ) -> TransformersEncoder:
        """Builds the model of a checkpoint; see ``formats.build_encoder``.

        Raises:
            CheckpointError: It is not an encoder-only sequence classification with one or two labels, or its weights
                are not those of its configuration.
        """
        kind = _class_of(config, source)
        if modules is not None and modules.is_modular and modules.dense:
            raise CheckpointError(
                f"{source} cannot be opened as a re-ranker: modules.json names {', '.join(modules.names)} over a "
                f"{config.get('model_type')!r}; such folders are opened for BERT, RoBERTa, DistilBERT and ELECTRA."
            )
        check_types({name: tensor for name, tensor in weights.items() if not _is_buffer(name)}, source)
        settings = dict(config)
        if new_head_seed is not None and _labels(settings) not in (1, 2):
            settings |= {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
            settings.pop("num_labels", None)
        wrong = [name for name in _SIZES if name in settings and not is_size(settings[name])]
        layers = len({part for name in weights for part in name.split(".") if part.isdigit()})
        # ALBERT's layers share their weights; of others there cannot be more than the weights have numbers.
        if not wrong and "num_hidden_layers" in settings and config["model_type"] != "albert":
            wrong = ["num_hidden_layers"] if settings["num_hidden_layers"] > layers else []
        if not wrong and settings.get("num_hidden_layers", 0) > _MOST_LAYERS:
            wrong = ["num_hidden_layers"]
        if wrong:
            stated = ", ".join(f"{name} {settings[name]!r}" for name in wrong)
            raise CheckpointError(
                f"{source} cannot be opened as a re-ranker: config.json says {stated}, which is not a size or not that "
                f"of the weights ({layers} layers)."
            )
        for name in ("auto_map", "torch_dtype", "dtype", "quantization_config", "_attn_implementation"):
            settings.pop(name, None)
        try:
            shape = kind.config_class.from_dict(settings)
            model, loading = _filled(kind, shape, weights, new_head_seed or 0)
        except Exception as error:  # configurations raise many unrelated types
            raise CheckpointError(
                f"{source} cannot be opened as a re-ranker: transformers does not make a {kind.__name__} of it: "
                f"{type(error).__name__}: {error}"
            ) from error
        base = f"{kind.base_model_prefix}."
        missing = sorted(map(str, loading["missing_keys"]))
        wrong_shape = sorted(str(key[0] if isinstance(key, tuple) else key) for key in loading["mismatched_keys"])
        unexpected = sorted(name for name in map(str, loading["unexpected_keys"]) if not _is_left_over(name))
        new = [] if new_head_seed is None else [name for name in missing + wrong_shape if not name.startswith(base)]
        head = [name for name in unexpected if not name.startswith(base)]
        head += [name for name in new if name in wrong_shape]
        if new_head_seed is not None and drop_head:
            unexpected = [name for name in unexpected if name not in head]
        complaints = [
            f"{what}: {listed(names)}"
            for what, names in (
                ("missing", [name for name in missing if name not in new]),
                ("wrong shape", [n for n in wrong_shape if n not in new or not drop_head]),
                ("unexpected", unexpected),
            )
            if names
        ]
        if not complaints and model.config.num_labels not in (1, 2):
            complaints = [f"it has {model.config.num_labels} labels; a re-ranker has 1, or 2, whose second counts"]
        if complaints:
            raise CheckpointError(f"{source} cannot be opened as a re-ranker: {'; '.join(complaints)}.")
        if head:
            warn_of_dropped({name: weights[name] for name in head if name in weights}, source)
        encoder = cls(model)
        encoder.has_new_head = bool(new)
        return encoder

    @property
    def signature(self) -> str:
        """All that scores follow from beside the weights."""
        settings = {name: value for name, value in self.config.to_dict().items() if name not in _OF_NO_ACCOUNT}
        return f"{self.head_kind} {json.dumps(settings, sort_keys=True, default=str)}"

    @property
    def vocab_size(self) -> int:
        """Rows of the table of tokens."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def token_types(self) -> int | None:
        """Rows of the table of token types; None: types are not read."""
        return (getattr(self.config, "type_vocab_size", None) or None) if self.reads_types else None

    @property
    def positions(self) -> int | None:
        """Tokens that a pair can have; None: any number."""
        stated = getattr(self.config, "max_position_embeddings", None)
        if not isinstance(stated, int) or stated < 1:
            return None
        # Kin of RoBERTa begin to count after the padding token's id, as their tables say.
        tables = [m for n, m in self.model.named_modules() if n.endswith(".position_embeddings")]
        skipped = getattr(tables[0], "padding_idx", None) if tables else None
        return stated if skipped is None else stated - skipped - 1

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores a batch; see ``PairEncoder.forward``."""
        types = {"token_type_ids": token_type_ids} if self.token_types else {}
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        device = input_ids.device.type
        with torch.autocast(device, self.computes) if self.computes else contextlib.nullcontext():
            logits: Tensor = self.model(input_ids=input_ids, attention_mask=mask, **types).logits
        return logits[:, -1].float()

    def compute_in(self, dtype: torch.dtype) -> None:
        """See ``PairEncoder.compute_in``. Autocast fits inputs to the weights, and keeps sums and norms in float32."""
        super().compute_in(dtype)
        self.computes = dtype
        for name, child in list(self.model.named_children()):
            if name != self.model.base_model_prefix:
                setattr(self.model, name, _InFloat32(child))

    def on(self, device: torch.device) -> TransformersEncoder:
        """A twin for scoring; see ``PairEncoder.on``."""
        tensors = [*self.parameters(), *self.buffers()]
        # Copied but for the tensors, which are shared, or moved one by one.
        memo = {
            id(t): nn.Parameter(t.detach().to(device), requires_grad=False)
            if isinstance(t, nn.Parameter)
            else t.detach().to(device)
            for t in tensors
        }
        return copy.deepcopy(self, memo).eval().requires_grad_(False)

    def copy(self, dropout: float | None = None) -> TransformersEncoder:
        """A copy to be trained; see ``PairEncoder.copy``."""
        shape = copy.deepcopy(self.config)
        if dropout is not None:
            for name, value in vars(self.config).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(shape, name, dropout)
        model, _ = _filled(type(self.model), shape, self.model.state_dict(), 0)
        copied = TransformersEncoder(model)
        copied.config = self.config
        with torch.no_grad():
            for mine, theirs in zip(copied.parameters(), self.parameters(), strict=True):
                mine.data = theirs.detach().clone().float()
        return copied

    def linear_maps(self) -> Iterator[LinearMap]:
        """The linear maps of its layers; see ``PairEncoder.linear_maps``."""
        for module in getattr(self.model, self.model.base_model_prefix).modules():
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    yield LinearMap(module, name, None, None)

    def without_activations(self) -> None:
        """No activation of it is fused."""

    def recompute_layers(self, recompute: bool) -> None:
        """See ``PairEncoder.recompute_layers``."""
        if recompute:
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # of transformers 5, and 4
            enable = next(getattr(self.model, name) for name in names if hasattr(self.model, name))
            enable({"use_reentrant": False})


class _InFloat32(nn.Module):
    """A module that autocast passes by: half precision in the head would collapse close scores into ties."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return self.module(*(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs))


def _class_of(config: Mapping[str, Any], source: str) -> Any:
    """The class of ``transformers`` for ``config.json``."""
    model_type = config.get("model_type")
    backbone = config.get("backbone_model_type")
    known = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    # What has a masked language model is an encoder; decoders read their last token, and never what comes after.
    both = model_type if isinstance(model_type, str) and model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES else ""
    kind = getattr(transformers, known[both]) if both in known else None
    if kind is None or kind.config_class().is_encoder_decoder or config.get("is_decoder"):
        raise CheckpointError(
            f"{source} is not a cross-encoder that this package knows: model_type is {model_type!r}, its backbone "
            f"{backbone!r}. It opens Lightning IR's, Sentence Transformers' and transformers' checkpoints of encoders "
            f"with a score, such as ELECTRA, BERT, RoBERTa, DistilBERT, ModernBERT and DeBERTa."
        )
    return kind


def _filled(kind: Any, shape: Any, weights: Mapping[str, Tensor], seed: int) -> tuple[Any, dict[str, Any]]:
    """The model with float32 weights, and what was missing; random numbers are drawn from the seed alone."""
    with torch.random.fork_rng(devices=[]), _quietly():
        torch.manual_seed(seed)
        model, loading = kind.from_pretrained(
            None, config=shape, state_dict=dict(weights), dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    return model.eval().requires_grad_(False), loading


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without notes of ``transformers``, whose findings are said by our own errors, and without its progress bar."""
    log = transformers.logging
    before, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bar:
            log.enable_progress_bar()


def _labels(config: Mapping[str, Any]) -> int:
    names = config.get("id2label")
    return len(names) if isinstance(names, Mapping) else 2  # as transformers has it


def _is_buffer(name: str) -> bool:
    return name.endswith(("position_ids", "token_type_ids"))


def _is_left_over(name: str) -> bool:
    """Whether a weight is a buffer's, or of a pre-training head."""
    left = ("cls.", "lm_head.", "lm_predictions.", "mask_predictions.", "predictions.", "decoder.")
    return _is_buffer(name) or name.startswith(left) or ".pooler." in name
