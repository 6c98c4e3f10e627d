"""How the tokens of a batch lie in memory, and which of them see each other.

``Padded``: a row per pair, filled up to the longest one; for training, for CPUs, and for modules of ``transformers``.
``Packed``: the tokens of all pairs in one row, without padding; for GPUs, whose fast attention kernels take no mask.
Everything in a layer but attention works on single tokens, so that layers are the same for both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of some tokens, each of shape (1, tokens, hidden)."""

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]
"""Attention within the pairs of a packed batch: queries, keys and values, shape (tokens, heads, head size); the offsets
of the pairs' queries and of their keys, shape (pairs + 1,), int32; the largest number of a pair's queries, and keys.
Returns the shape of the queries."""


@dataclass(frozen=True)
class Padded:
    """A row per pair; token vectors have the shape (pairs, tokens, size).

    Args:
        mask: True for tokens, False for padding, shape (pairs, tokens); None: nothing is padded.
        seen: What is attended to, shape (pairs, 1, 1, tokens + others); None: what ``mask`` says.
        others: Keys and values of tokens outside the batch that are attended to as well, after its own.
    """

    mask: Tensor | None
    seen: Tensor | None = None
    others: KeysValues | None = None

    def first(self, hidden: Tensor) -> Tensor:
        """The vectors of the pairs' first tokens, shape (pairs, size)."""
        return hidden[:, 0]

    def running(self, counted: Tensor) -> Tensor:
        """The sum over the tokens of a pair up to each of them, of the shape of the argument, (pairs, tokens)."""
        return counted.cumsum(dim=1)

    def padded(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token vectors as a row per pair, and their mask."""
        return hidden, self.mask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
        """What the queries' tokens read of the pair's tokens, of the shape of ``query``.

        Args:
            query: Of all tokens, or of the pairs' first ones, shape (pairs, hidden).
            key: Shape (pairs, tokens, hidden).
            value: Shape (pairs, tokens, hidden).
            heads: Number of heads.
            dropout: Probability.
        """
        seen = self.seen
        if seen is None and self.mask is not None:
            seen = self.mask[:, None, None, :]
        if self.others is not None:
            rows = (len(key), -1, -1)
            key, value = (torch.cat([x, y.expand(rows)], dim=1) for x, y in zip((key, value), self.others, strict=True))
        first_only = query.dim() == 2
        context = F.scaled_dot_product_attention(
            _heads(query[:, None] if first_only else query, heads),
            _heads(key, heads),
            _heads(value, heads),
            attn_mask=seen,
            dropout_p=dropout,
        )  # (B, heads, Q, H / heads)
        context = context.transpose(1, 2).flatten(2)  # (B, Q, H)
        return context[:, 0] if first_only else context


@dataclass(frozen=True)
class Packed:
    """The tokens of all pairs one after another; token vectors have the shape (tokens of all pairs, size).

    Args:
        offsets: Where the pairs begin, and the number of tokens, shape (pairs + 1,), int32.
        pair_of: The number of each token's pair, shape (tokens,), int64.
        longest: Number of tokens of the longest pair.
        kernel: Attention; see ``kernel``.
    """

    offsets: Tensor
    pair_of: Tensor
    longest: int
    kernel: Kernel

    def first(self, hidden: Tensor) -> Tensor:
        """The vectors of the pairs' first tokens, shape (pairs, size)."""
        return hidden.index_select(0, self.offsets[:-1])

    def running(self, counted: Tensor) -> Tensor:
        """The sum over the tokens of a pair up to each of them, of the shape of the argument, (tokens,)."""
        total = counted.cumsum(dim=0)
        before = self.first(total - counted)  # (pairs,)
        return total - before.index_select(0, self.pair_of)

    def padded(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token vectors as a row per pair, and their mask."""
        places = self.running(torch.ones_like(self.pair_of)) - 1
        rows = hidden.new_zeros(len(self.offsets) - 1, self.longest, hidden.shape[-1])
        mask = torch.zeros(rows.shape[:2], dtype=torch.bool, device=hidden.device)
        rows[self.pair_of, places] = hidden
        mask[self.pair_of, places] = True
        return rows, mask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
        """What the queries' tokens read of their pair's tokens, of the shape of ``query``; for scoring only.

        Args:
            query: Of all tokens, or of the pairs' first ones, shape (pairs, hidden).
            key: Shape (tokens, hidden).
            value: Shape (tokens, hidden).
            heads: Number of heads.
            dropout: Must be 0: the kernels do not drop out.
        """
        if dropout:
            raise ValueError(f"Packed: dropout must be 0, got {dropout}; train on padded batches.")
        offsets, longest = self.offsets, self.longest
        if len(query) < len(key):
            offsets, longest = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device), 1
        query, key, value = (x.reshape(len(x), heads, -1) for x in (query, key, value))
        return self.kernel(query, key, value, offsets, self.offsets, longest, self.longest).flatten(1)


Layout = Padded | Packed


@functools.cache
def kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> Kernel | None:
    """Attention for packed batches on a GPU, the first that works there; None: batches are to be padded.

    ``torch.nn.attention.varlen`` (torch 2.10 and later, half precision), else memory-efficient attention.
    """
    if device.type != "cuda":
        return None
    kernels = (efficient,) if dtype == torch.float32 else (varlen, efficient)
    return next((kernel for kernel in kernels if _works(kernel, device, dtype, head_size)), None)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, key_offsets: Tensor, longest: int, longest_key: int
) -> Tensor:
    """Flash attention as torch 2.10 and later have it; see ``Kernel``."""
    from torch.nn.attention.varlen import varlen_attn

    return cast(Tensor, varlen_attn(query, key, value, offsets, key_offsets, longest, longest_key))


def efficient(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, key_offsets: Tensor, longest: int, longest_key: int
) -> Tensor:
    """Memory-efficient attention (Rabe and Staats, 2021), also in float32; see ``Kernel``.

    The operator is what torch runs under nested tensors, which themselves do not work in inference mode. It is no
    public interface, so it is tried before use.
    """
    rows = (x[None] for x in (query, key, value))
    forward = torch.ops.aten._efficient_attention_forward
    context: Tensor = forward(*rows, None, offsets, key_offsets, longest, longest_key, 0.0, 0, False)[0]
    return context[0]


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)  # (B, T, H) -> (B, heads, T, H / heads)


def _works(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether a kernel gives what plain attention gives, found by trying two small pairs."""
    lengths, heads = (5, 3), 2
    numbers = torch.linspace(-1, 1, 3 * sum(lengths) * heads * head_size, device=device).sin()
    query, key, value = numbers.reshape(3, sum(lengths), heads, head_size).to(dtype)
    offsets = torch.tensor([0, 5, 8], dtype=torch.int32, device=device)
    firsts = torch.arange(3, dtype=torch.int32, device=device)
    pairs = list(zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)), strict=True))
    expected = [F.scaled_dot_product_attention(*(x[None].float() for x in pair))[0].transpose(0, 1) for pair in pairs]
    try:
        with torch.inference_mode():
            whole = kernel(query, key, value, offsets, offsets, 5, 5)
            first = kernel(query[[0, 5]], key, value, firsts, offsets, 1, 5)
    except (ImportError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    near = 1e-5 if dtype == torch.float32 else 1e-2
    return torch.allclose(whole.float(), torch.cat(expected), atol=near) and torch.allclose(
        first.float(), torch.stack([one[0] for one in expected]), atol=near
    )
