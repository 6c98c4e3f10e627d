"""The Set-Encoder: a cross-encoder that sees a query's passages together (Schlatt et al., ECIR 2025).

In every layer each passage also attends to one vector of each of the others, its interaction vector, which stands for
that passage: https://arxiv.org/abs/2404.06912. No position tells the others apart, so scores depend on the set of
passages and not on their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import Padded
from .encoder import Batch, CrossEncoder, EncoderConfig, HeadKind, without_weights

BACKBONES = ("electra", "bert")
"""Families that Lightning IR makes set encoders of."""


@dataclass(frozen=True)
class Interaction:
    """How passages see each other.

    Args:
        depth: Passages of a list that the checkpoint was trained with, at most. Longer lists can be scored.
        extra_token: Whether the vector that others see is that of a token of its own after [CLS], or [CLS]'s.
    """

    depth: int = 100
    extra_token: bool = False

    @property
    def position(self) -> int:
        """Where the interaction vector stands in a pair."""
        return 1 if self.extra_token else 0


class SetEncoder(CrossEncoder):
    """Scores the passages of a query together: a ``CrossEncoder`` with an exchange before each layer.

    Args:
        config: As for ``CrossEncoder``.
        head: As for ``CrossEncoder``.
        interaction: How passages see each other.
        settings: The other arguments of ``CrossEncoder``.
    """

    sees_lists: ClassVar[bool] = True
    packs: ClassVar[bool] = False  # what is seen beside a passage's own tokens takes a mask

    def __init__(
        self, config: EncoderConfig, head: HeadKind = "linear", *settings: Any, interaction: Interaction, **named: Any
    ) -> None:
        super().__init__(config, head, *settings, **named)
        self.interaction = interaction

    @classmethod
    def of(
        cls, encoder: CrossEncoder, interaction: Interaction, *, token: int | None = None, seed: int = 0
    ) -> SetEncoder:
        """A set encoder with the weights of a cross-encoder, which are shared.

        Args:
            encoder: The cross-encoder.
            interaction: How passages see each other.
            token: The id of the extra token, whose embedding is new; None where there is none.
            seed: What it is drawn from.
        """
        config, weights = encoder.config, {name: tensor.detach() for name, tensor in encoder.state_dict().items()}
        if token is not None:
            table = weights[_TOKENS]  # (V, E)
            config = replace(config, vocab_size=max(config.vocab_size, token + 1))
            grown = table.new_zeros(config.vocab_size, table.shape[1])
            grown[: len(table)] = table
            grown[token].normal_(0.0, config.initializer_range, generator=torch.Generator().manual_seed(seed))
            weights[_TOKENS] = grown
        with without_weights():
            made = cls(config, **encoder._settings, interaction=interaction)
        made.load_state_dict(weights, assign=True)
        made.has_new_head = encoder.has_new_head
        return made.eval().requires_grad_(False)

    @property
    def signature(self) -> str:
        """All that scores follow from beside the weights."""
        return f"{super().signature} {self.interaction}"

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores a batch that is a whole list; see ``PairEncoder.forward``."""
        return self.together([(input_ids, token_type_ids, attention_mask)])

    def together(self, batches: Sequence[Batch]) -> Tensor:
        """Scores a query's list, layer by layer; see ``PairEncoder.together``.

        At any time it holds the hidden states of the list, and the inside of one layer for one batch.
        """
        layouts = [Padded(None if mask is None else mask.bool()) for _, _, mask in batches]
        hidden = [
            self._embedded(ids, types, layout) for (ids, types, _), layout in zip(batches, layouts, strict=True)
        ]  # (B, T, H) each
        place, size = self.interaction.position, sum(map(len, hidden))
        seen = [_seen(states, layout.mask, place, size) for states, layout in zip(hidden, layouts, strict=True)]
        for layer in cast(Iterable[Any], self.encoder.layer):
            vectors = torch.cat([states[:, place] for states in hidden])  # (N, H)
            others = layer.attention.self.keys_values(vectors[None])
            for number, (states, layout) in enumerate(zip(hidden, layouts, strict=True)):
                hidden[number] = self.encoder.through(layer, states, Padded(layout.mask, seen[number], others))
        return torch.cat([self._scored(states, layout) for states, layout in zip(hidden, layouts, strict=True)])

    @property
    def _settings(self) -> dict[str, Any]:
        return {**super()._settings, "interaction": self.interaction}


_TOKENS = "embeddings.word_embeddings.weight"


def _seen(hidden: Tensor, mask: Tensor | None, place: int, size: int) -> Tensor:
    """What a batch's passages attend to: their own tokens, and the interaction vectors of the whole list.

    Each passage's own vector is one of the list's, so it is left out in its own sequence: it counts once.

    Returns:
        Shape (B, 1, 1, T + size).
    """
    own = hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask.clone()  # (B, T)
    own[:, place] = False
    return F.pad(own, (0, size), value=True)[:, None, None, :]
