"""The ELECTRA encoder with a scoring head, as one plain torch module.

It is written out rather than taken from ``transformers``, for three reasons. A re-ranker reads the [CLS] vector only,
so the last layer is computed for that one position (the score is the same, and the layer costs almost nothing). Scores
do not change with the installed ``transformers``. And no weight is ever initialised at random. Submodules have the
names of the published weights, so that ``state_dict()`` is what a checkpoint file holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

HeadKind = Literal["linear", "classification"]


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an ELECTRA encoder (Clark et al., 2020, https://arxiv.org/abs/2003.10555).

    Field names are those of ``config.json``. Sizes are numbers of units, and dropouts are probabilities.
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


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
"""Activations by the names of ``EncoderConfig.hidden_act``."""


class CrossEncoder(nn.Module):
    """Scores (query, passage) pairs: ELECTRA encoder, [CLS] vector, head.

    Args:
        config: The encoder's shape.
        head: ``"linear"``: one linear layer on the [CLS] vector (monoELECTRA); ``"classification"``: the head of
            ``ElectraForSequenceClassification`` (dense layer, GELU, projection).
        outputs: Rows of the head, 1 or 2. How two rows become one score depends on the head: the linear head takes the
            log-probability of row 1 (Lightning IR's ``scoring_strategy="mono"``), the classification head the logit of
            row 1.
        head_bias: Whether the linear head has a bias.
    """

    def __init__(
        self, config: EncoderConfig, head: HeadKind = "linear", outputs: int = 1, head_bias: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.head_kind: HeadKind = head
        self.outputs = outputs
        self.embeddings = _Embeddings(config)
        # Present only if the sizes differ, as in the published weights.
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
        self.encoder = _Encoder(config)
        if head == "linear":
            self.linear = nn.Linear(config.hidden_size, outputs, bias=head_bias)
        else:
            self.classifier = _ClassificationHead(config, outputs)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores a batch.

        Args:
            input_ids: Token ids, shape (batch, tokens).
            token_type_ids: 0 for the query's part, 1 for the passage's, shape (batch, tokens).
            attention_mask: True (or 1) for tokens, False for padding, shape (batch, tokens); None without padding.

        Returns:
            float32 logits, shape (batch,).
        """
        hidden = self.embeddings(input_ids, token_type_ids)  # (B, T, E)
        if self.config.embedding_size != self.config.hidden_size:
            hidden = self.embeddings_project(hidden)  # (B, T, H)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        cls = self.encoder(hidden, mask)  # (B, H)
        # The head runs in float32 even under autocast: half precision would turn close scores into ties.
        with torch.autocast(cls.device.type, enabled=False):
            return self._score(cls.float())

    def on(self, device: torch.device) -> CrossEncoder:
        """A copy for scoring, in evaluation mode, on ``device``; weights that are there already are shared."""
        with torch.device("meta"):
            twin = self._blank(self.config)
        twin.load_state_dict({name: t.detach().to(device) for name, t in self.state_dict().items()}, assign=True)
        return twin.eval().requires_grad_(False)

    def copy(self, dropout: float | None = None) -> CrossEncoder:
        """A copy with its own float32 weights, to be trained.

        Args:
            dropout: Dropout probability in all its layers (the config is not changed); None: the config's.
        """
        config = self.config
        if dropout is not None:
            config = replace(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        copied = self._blank(config)
        copied.config = self.config
        copied.load_state_dict(self.state_dict())
        return copied.float()

    def _blank(self, config: EncoderConfig) -> CrossEncoder:
        """The same modules without these weights."""
        head_bias = self.head_kind == "linear" and self.linear.bias is not None
        return CrossEncoder(config, self.head_kind, self.outputs, head_bias)

    def _score(self, cls: Tensor) -> Tensor:
        if self.head_kind == "linear":
            logits: Tensor = self.linear(cls)  # (B, outputs)
            return logits[:, 0] if self.outputs == 1 else logits.log_softmax(dim=-1)[:, 1]
        return self.classifier(cls)[:, -1]


class _Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        words = self.word_embeddings(input_ids)  # (B, T, E)
        positions = self.position_embeddings.weight[: input_ids.shape[1]]  # (T, E)
        hidden = words + self.token_type_embeddings(token_type_ids) + positions
        return self.dropout(self.LayerNorm(hidden))


class _Encoder(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.recompute = False  # in training: compute layers again for the gradient rather than keep them in memory

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layer[:-1]:
            hidden = self._through(layer, hidden, hidden, mask)  # (B, T, H)
        # Only the first position is read after the last layer, so only it is computed there.
        return self._through(self.layer[-1], hidden[:, :1], hidden, mask)[:, 0]  # (B, H)

    def _through(self, layer: nn.Module, queries: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return recomputed(layer, queries, hidden, mask, use_reentrant=False)
        return layer(queries, hidden, mask)


class _Layer(nn.Module):
    """A post-norm transformer layer; ``queries`` are the positions to compute, a prefix of ``hidden``."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Dense(config.hidden_size, config.intermediate_size)
        self.output = _ResidualOutput(config, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.attention(queries, hidden, mask)
        return self.output(self.activation(self.intermediate.dense(attended)), attended)


class _Attention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _ResidualOutput(config, config.hidden_size)

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(queries, hidden, mask), queries)


class _SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        context = F.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(self.key(hidden)),
            self._split(self.value(hidden)),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, heads, Q, H / heads)
        return context.transpose(1, 2).flatten(2)  # (B, Q, H)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, T, H) -> (B, heads, T, H / heads)


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
    """The head of ``ElectraForSequenceClassification``."""

    def __init__(self, config: EncoderConfig, outputs: int) -> None:
        super().__init__(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, outputs)

    def forward(self, cls: Tensor) -> Tensor:
        hidden = F.gelu(self.dense(self.dropout(cls)))
        return self.out_proj(self.dropout(hidden))  # (B, outputs)
