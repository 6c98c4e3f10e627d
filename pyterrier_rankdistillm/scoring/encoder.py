"""The BERT-shaped encoder with a scoring head, as one plain torch module: ELECTRA, BERT, RoBERTa, DistilBERT.

Written out rather than taken from ``transformers``, for three reasons: most re-rankers read the [CLS] vector only, so
the last layer is computed for that one position (the score is the same, the layer's cost nearly vanishes); the scores
cannot drift with the installed ``transformers``; and no weight is ever initialised at random. Submodules carry the
names of the weights of ELECTRA and of Lightning IR; ``formats`` has the tables of the other families' names.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint as recomputed

from .attention import KeysValues, Layout, Packed, Padded

HeadKind = Literal["linear", "classification", "bert", "roberta", "distilbert"]
"""``"linear"``: one linear layer (Lightning IR, monoELECTRA). The others: a dense layer, an activation and a
projection, as in ``ElectraForSequenceClassification`` (``"classification"``) and its like."""

Pooling = Literal["first", "mean", "max", "sum"]
"""How a pair's token vectors become one; all but ``"first"`` over all its tokens, special ones too."""

ROBERTA = ("roberta", "xlm-roberta")
"""Families whose positions are counted from ``pad_token_id`` + 1, over the tokens that are not padding."""


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are made here have names and shapes only: no memory, and nothing is drawn.

    (On the meta device alone torch imports its compiler, which takes a second, to draw nothing.)
    """
    with torch.device("meta"), _NothingDrawn():
        yield


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of a BERT-shaped encoder (Devlin et al., 2019, https://arxiv.org/abs/1810.04805).

    Field names are those of ``config.json``; all sizes are numbers of units, dropouts are probabilities.

    Args:
        embedding_size: ELECTRA's; elsewhere ``hidden_size``.
        max_position_embeddings: Rows of the table of positions, some of which RoBERTa does not use.
        type_vocab_size: 0: tokens have no types (DistilBERT).
        classifier_dropout: The head's; None: ``hidden_dropout_prob``.
        model_type: The family: ``"electra"``, ``"bert"``, ``"roberta"``, ``"xlm-roberta"`` or ``"distilbert"``.
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int = 0
    classifier_dropout: float | None = None
    model_type: str = "electra"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"EncoderConfig: hidden_size must be a multiple of num_attention_heads, "
                f"got {self.hidden_size} and {self.num_attention_heads}."
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"EncoderConfig: hidden_act must be one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r}."
            )

    @property
    def first_position(self) -> int:
        """The row of the table of positions that a pair's first token gets."""
        return self.pad_token_id + 1 if self.model_type in ROBERTA else 0


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "relu": F.relu,
}
"""Activations by the names of ``EncoderConfig.hidden_act``."""


class _DenseHead(NamedTuple):
    activation: Callable[[Tensor], Tensor]
    drops_first: bool  # whether training drops out before the dense layer, too


_DENSE_HEADS = {
    "classification": _DenseHead(F.gelu, drops_first=True),
    "bert": _DenseHead(torch.tanh, drops_first=False),
    "roberta": _DenseHead(torch.tanh, drops_first=True),
    "distilbert": _DenseHead(F.relu, drops_first=False),
}


class LinearMap(NamedTuple):
    """A linear map of an encoder's layers: ``module.name``, and the activation that follows it there and may be fused.

    Args:
        module: The module that holds it.
        name: Its name there.
        activation: One of ``EncoderConfig.hidden_act``; None: there is none to be fused.
        follows: The activation that gives its inputs; None: they come from elsewhere, or it is not known.
    """

    module: nn.Module
    name: str
    activation: str | None
    follows: str | None


Batch = tuple[Tensor, Tensor, Tensor | None]
"""Token ids, token types and mask, as ``PairEncoder.forward`` takes them."""


class PairEncoder(nn.Module, ABC):
    """What scoring, training and saving know of a cross-encoder: token ids, types and mask in, logits out.

    Attributes:
        config: Its shape.
        head_kind: What its head is called.
        outputs: Rows of the head, 1 or 2.
        sees_lists: Whether a pair's score depends on the other pairs of its query, too; see ``together``.
        packs: Whether it takes packed batches; see ``packed``.
        has_new_head: Whether the head was drawn at random, so that scores mean nothing before training.
    """

    sees_lists: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    config: Any
    head_kind: str
    outputs: int
    has_new_head: bool = False

    @property
    @abstractmethod
    def signature(self) -> str:
        """All that scores follow from beside the weights."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Rows of the table of tokens."""

    @property
    @abstractmethod
    def token_types(self) -> int | None:
        """Rows of the table of token types; None: types are not read."""

    @property
    @abstractmethod
    def positions(self) -> int | None:
        """Tokens that a pair can have; None: any number."""

    @abstractmethod
    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores a batch.

        Args:
            input_ids: Token ids, shape (batch, tokens).
            token_type_ids: As the tokenizer gives them (mostly 0 for the query's part, 1 for the passage's), shape
                (batch, tokens).
            attention_mask: True (or 1) for tokens, False for padding, shape (batch, tokens); None where nothing is
                padded.

        Returns:
            float32 logits, shape (batch,).
        """

    def packed(self, input_ids: Tensor, token_type_ids: Tensor, layout: Packed) -> Tensor:
        """Scores a batch without padding, where the encoder ``packs``.

        Args:
            input_ids: Token ids of all pairs, one after another, shape (tokens,).
            token_type_ids: As for ``forward``, shape (tokens,).
            layout: Where the pairs begin and end.

        Returns:
            float32 logits, shape (pairs,).
        """
        raise NotImplementedError(f"{type(self).__name__} takes padded batches only.")

    def together(self, batches: Sequence[Batch]) -> Tensor:
        """Scores several batches; where the encoder ``sees_lists``, they are one query's list.

        Args:
            batches: Each as for ``forward``; they are padded to different lengths.

        Returns:
            float32 logits in the order of the batches, shape (pairs,).
        """
        return torch.cat([self(*batch) for batch in batches])

    @abstractmethod
    def on(self, device: torch.device) -> PairEncoder:
        """A twin for scoring: weights on ``device`` (shared with this one where they are there), evaluation mode."""

    @abstractmethod
    def copy(self, dropout: float | None = None) -> PairEncoder:
        """A copy with its own float32 weights, to be trained.

        Args:
            dropout: Probability in all its layers (the config keeps what it says); None: the config's.
        """

    @abstractmethod
    def linear_maps(self) -> Iterator[LinearMap]:
        """The linear maps of its layers, which may be replaced by faster ones; not those of its head."""

    @abstractmethod
    def without_activations(self) -> None:
        """The activations of ``linear_maps`` are done by what replaced them."""

    def compute_in(self, dtype: torch.dtype) -> None:
        """From now on the linear maps of its layers, and attention, compute in ``dtype``; for scoring, in place.

        Their weights are cast here, once. Embeddings, residual sums, LayerNorm and the head stay in float32.
        """
        for module, name, *_ in list(self.linear_maps()):
            whole = getattr(module, name)
            with without_weights():
                half = nn.Linear(whole.in_features, whole.out_features, bias=whole.bias is not None)
            tensors = {key: tensor.to(dtype) for key, tensor in whole.state_dict().items()}
            half.load_state_dict(tensors, assign=True)
            setattr(module, name, half.eval().requires_grad_(False))

    @abstractmethod
    def recompute_layers(self, recompute: bool) -> None:
        """In training: whether layers are computed again for the gradient rather than kept in memory."""


class CrossEncoder(PairEncoder):
    """Scores (query, passage) pairs: BERT-shaped encoder, pooled vector, head.

    Args:
        config: The encoder's shape.
        head: What is done with the pooled vector, see ``HeadKind``.
        outputs: Rows of the head, 1 or 2. Two rows become one score: the logit of row 1, or its log-probability.
        head_bias: Whether the head's last layer has a bias; default: all have but the linear head.
        pooling: How the vectors of a pair's tokens become one.
        log_probability: With two rows: whether the score is the log-probability of row 1 (Lightning IR's
            ``scoring_strategy="mono"``) or its logit; default: the log-probability for a linear head.
    """

    packs: ClassVar[bool] = True

    def __init__(
        self,
        config: EncoderConfig,
        head: HeadKind = "linear",
        outputs: int = 1,
        head_bias: bool | None = None,
        *,
        pooling: Pooling = "first",
        log_probability: bool | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.head_kind: HeadKind = head
        self.outputs = outputs
        self.head_bias = head != "linear" if head_bias is None else head_bias
        self.pooling: Pooling = pooling
        self.log_probability = outputs == 2 and (head == "linear" if log_probability is None else log_probability)
        self.embeddings = _Embeddings(config)
        # Present only where the sizes differ, as in the published weights.
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
        self.encoder = _Encoder(config, whole=pooling != "first")
        if head == "linear":
            self.linear = nn.Linear(config.hidden_size, outputs, bias=self.head_bias)
        else:
            self.classifier = _ClassificationHead(config, head, outputs, self.head_bias)

    @property
    def signature(self) -> str:
        """All that scores follow from beside the weights."""
        return f"{self.config} {self.head_kind} {self.outputs} {self.pooling} {self.log_probability}"

    @property
    def vocab_size(self) -> int:
        """Rows of the table of tokens."""
        return int(self.config.vocab_size)

    @property
    def token_types(self) -> int | None:
        """Rows of the table of token types; None: types are not read."""
        return self.config.type_vocab_size or None

    @property
    def positions(self) -> int:
        """Tokens that a pair can have."""
        return int(self.config.max_position_embeddings - self.config.first_position)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores a batch; see ``PairEncoder.forward``."""
        layout = Padded(None if attention_mask is None else attention_mask.bool())
        return self._laid_out(input_ids, token_type_ids, layout)

    def packed(self, input_ids: Tensor, token_type_ids: Tensor, layout: Packed) -> Tensor:
        """Scores a batch without padding; see ``PairEncoder.packed``."""
        return self._laid_out(input_ids, token_type_ids, layout)

    def on(self, device: torch.device) -> CrossEncoder:
        """A twin for scoring; see ``PairEncoder.on``."""
        with without_weights():
            twin = self._blank(self.config)
        twin.load_state_dict({name: t.detach().to(device) for name, t in self.state_dict().items()}, assign=True)
        return twin.eval().requires_grad_(False)

    def copy(self, dropout: float | None = None) -> CrossEncoder:
        """A copy to be trained; see ``PairEncoder.copy``."""
        config = self.config
        if dropout is not None:
            config = replace(
                config,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                classifier_dropout=None if config.classifier_dropout is None else dropout,
            )
        copied = self._blank(config)
        copied.config = self.config
        copied.load_state_dict(self.state_dict())
        return copied.float()

    def linear_maps(self) -> Iterator[LinearMap]:
        """The linear maps of its layers; see ``PairEncoder.linear_maps``."""
        for layer in self.encoder.layer:
            around = (layer.intermediate, layer.output)  # the activation
            for module in layer.modules():
                for name, child in module.named_children():
                    if isinstance(child, nn.Linear):
                        fused, follows = (self.config.hidden_act if module is one else None for one in around)
                        yield LinearMap(module, name, fused, follows)

    def without_activations(self) -> None:
        """The activations of ``linear_maps`` are done by what replaced them."""
        for layer in self.encoder.layer:
            layer.activation = nn.Identity()

    def recompute_layers(self, recompute: bool) -> None:
        """See ``PairEncoder.recompute_layers``."""
        self.encoder.recompute = recompute

    @property
    def _settings(self) -> dict[str, Any]:
        """The constructor's arguments, but for the shape."""
        return {
            "head": self.head_kind, "outputs": self.outputs, "head_bias": self.head_bias, "pooling": self.pooling,
            "log_probability": self.log_probability,
        }  # fmt: skip

    def _blank(self, config: EncoderConfig) -> Self:
        """The same modules without these weights."""
        return type(self)(config, **self._settings)

    def _laid_out(self, input_ids: Tensor, token_type_ids: Tensor, layout: Layout) -> Tensor:
        hidden = self._embedded(input_ids, token_type_ids, layout)  # (B, T, H); packed: (N, H)
        return self._scored(self.encoder(hidden, layout), layout)

    def _embedded(self, input_ids: Tensor, token_type_ids: Tensor, layout: Layout) -> Tensor:
        """The input of the first layer, shape (B, T, H); packed: (N, H)."""
        hidden = self.embeddings(input_ids, token_type_ids, layout)  # (B, T, E)
        if self.config.embedding_size != self.config.hidden_size:
            hidden = self.embeddings_project(hidden)
        return hidden

    def _scored(self, hidden: Tensor, layout: Layout) -> Tensor:
        """The logits, shape (B,), of what the layers gave: (B, H) of the first positions, or the vectors of all."""
        # Pooling and head run in float32 under autocast too: half precision would collapse close scores into ties.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            vectors = hidden if self.pooling == "first" else pooled(*layout.padded(hidden), self.pooling)  # (B, H)
            head = self.linear if self.head_kind == "linear" else self.classifier
            logits: Tensor = head(vectors)  # (B, outputs)
            return logits.log_softmax(dim=-1)[:, 1] if self.log_probability else logits[:, -1]


def pooled(hidden: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """One vector per pair.

    Args:
        hidden: Token vectors, shape (batch, tokens, size).
        mask: True for tokens, shape (batch, tokens); None: nothing is padded.
        pooling: How.

    Returns:
        Shape (batch, size).
    """
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "max":
        return (hidden if mask is None else hidden.masked_fill(~mask[..., None], -torch.inf)).amax(dim=1)
    total = (hidden if mask is None else hidden * mask[..., None]).sum(dim=1)
    if pooling == "sum":
        return total
    return total / (hidden.shape[1] if mask is None else mask.sum(dim=1, keepdim=True))


class _Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.config = config

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, layout: Layout) -> Tensor:
        hidden = self.word_embeddings(input_ids)  # (B, T, E); packed: (N, E)
        if self.config.type_vocab_size:
            hidden = hidden + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(hidden + self._positions(input_ids, layout)))

    def _positions(self, input_ids: Tensor, layout: Layout) -> Tensor:
        if self.config.model_type in ROBERTA:
            # RoBERTa leaves padding tokens out of the count, also where a text spells one out.
            counted = input_ids.ne(self.config.pad_token_id).long()
            return self.position_embeddings(layout.running(counted) * counted + self.config.pad_token_id)
        if isinstance(layout, Padded):
            return self.position_embeddings.weight[: input_ids.shape[1]]  # (T, E)
        return self.position_embeddings(layout.running(torch.ones_like(input_ids)) - 1)  # (N, E)


class _Encoder(nn.Module):
    """The layers; ``whole``: all positions are read after the last one, rather than the first."""

    def __init__(self, config: EncoderConfig, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.recompute = False  # in training: compute layers again for the gradient rather than keep them in memory

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        for layer in self.layer:
            hidden = self.through(layer, hidden, layout)
        return hidden

    def through(self, layer: nn.Module, hidden: Tensor, layout: Layout) -> Tensor:
        """One layer's output, of the shape of its input, or (B, H) where only the first position is read of it.

        Args:
            layer: One of ``self.layer``.
            hidden: Its input, shape (B, T, H); packed: (N, H).
            layout: Which positions see each other.
        """
        # Only the first position is read after the last layer, so only it is computed there.
        first_only = layer is self.layer[-1] and not self.whole
        queries = layout.first(hidden) if first_only else hidden
        if self.recompute and torch.is_grad_enabled():
            return cast(Tensor, recomputed(layer, queries, hidden, layout, use_reentrant=False))
        return cast(Tensor, layer(queries, hidden, layout))


class _Layer(nn.Module):
    """A post-norm transformer layer; ``queries`` are the positions to compute: all of ``hidden``, or the first ones.

    Linear maps may compute in half precision, see ``PairEncoder.compute_in``; what is between them is float32.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Dense(config.hidden_size, config.intermediate_size)
        self.output = _ResidualOutput(config, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, queries: Tensor, hidden: Tensor, layout: Layout) -> Tensor:
        attended = self.attention(queries, hidden, layout)
        dense = self.intermediate.dense
        return self.output(self.activation(dense(_as_read_by(dense, attended))), attended)


class _Attention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _ResidualOutput(config, config.hidden_size)

    def forward(self, queries: Tensor, hidden: Tensor, layout: Layout) -> Tensor:
        return self.output(self.self(queries, hidden, layout), queries)


class _SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def keys_values(self, hidden: Tensor) -> KeysValues:
        hidden = _as_read_by(self.key, hidden)  # once for both
        return self.key(hidden), self.value(hidden)

    def forward(self, queries: Tensor, hidden: Tensor, layout: Layout) -> Tensor:
        read = _as_read_by(self.key, hidden)
        queries = read if queries is hidden else _as_read_by(self.key, queries)
        keys, values = self.keys_values(read)
        return layout.attend(self.query(queries), keys, values, self.heads, self.dropout if self.training else 0.0)


def _as_read_by(linear: nn.Module, x: Any) -> Any:
    """The input of a linear map as it multiplies it, made once for all maps that read it; see ``onednn``."""
    if isinstance(linear, nn.Linear):
        half = linear.weight.dtype in (torch.bfloat16, torch.float16)
        return x.to(linear.weight.dtype) if half else x
    return cast(Any, linear).read(x)


class _Dense(nn.Module):
    """A linear layer under the name ``dense``, as the published weights have it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)


class _ResidualOutput(_Dense):
    def __init__(self, config: EncoderConfig, inputs: int) -> None:
        super().__init__(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class _ClassificationHead(_Dense):
    """A dense layer with an activation, and a projection: the heads of transformers' ``ForSequenceClassification``."""

    def __init__(self, config: EncoderConfig, kind: HeadKind, outputs: int, bias: bool) -> None:
        super().__init__(config.hidden_size, config.hidden_size)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(config.hidden_size, outputs, bias=bias)
        self.kind = kind

    def forward(self, vectors: Tensor) -> Tensor:
        activation, drops_first = _DENSE_HEADS[self.kind]
        hidden = self.dense(self.dropout(vectors) if drops_first else vectors)
        return self.out_proj(self.dropout(activation(hidden)))  # (B, outputs)
