"""Gradients on a CPU: each core takes batches of its own.

Threads that share the products of a batch wait for each other at each of them; beside another busy process that takes
longer than one thread would (benchmarks/README.md). So a batch goes through the encoder, and its gradient back, in a
thread that computes with one core. What comes out does not depend on the number of cores, bit by bit: which pairs are a
batch, what dropout leaves out of it, and the order in which gradients are added follow from the step alone.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..scoring.cores import cores
from ..scoring.devices import lanes
from ..scoring.encoder import Batch, CrossEncoder, PairEncoder

R = TypeVar("R")


class Lanes:
    """Computes the gradients of an encoder on a CPU, each batch in a thread of one core.

    Args:
        encoder: The encoder, in training mode; its parameters get the gradients.
        dtype: What autocast computes in; None: float32.
    """

    def __init__(self, encoder: PairEncoder, dtype: torch.dtype | None = None) -> None:
        self.encoder = encoder
        self.dtype = dtype
        self.number = cores()

    def backward(self, batches: Sequence[Batch], loss: Callable[[Tensor], Tensor], *, keep: bool) -> Tensor:
        """Adds the gradients of a loss to those of the parameters.

        Args:
            batches: Pairs, each batch as ``PairEncoder.forward`` takes it.
            loss: The loss, of all pairs' logits in the order of the batches, shape (pairs,).
            keep: Whether the activations of all batches are kept until the loss is known. Otherwise each batch is
                encoded twice, the second time for its gradient, with the same dropout (Gao et al., 2021).

        Returns:
            The loss.
        """
        seeds = torch.randint(2**62, (len(batches),)).tolist()  # checkpoints hold the state of this generator

        def scored(number: int, *, graph: bool) -> Tensor:
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.set_grad_enabled(graph))
                if self.dtype is not None:  # each batch casts for itself: torch's cache is one for all threads
                    stack.enter_context(torch.autocast("cpu", self.dtype, cache_enabled=False))
                stack.enter_context(_Draws(seeds[number]))
                scores: Tensor = self.encoder(*batches[number])
            return scores

        held = self._computed(lambda number: scored(number, graph=keep), len(batches), ahead=len(batches))
        leaf = torch.cat([scores.detach() for scores in held]).requires_grad_(True)
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        shares = torch.split(gradient, [len(scores) for scores in held])
        parameters = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        sums = [_Sum(parameters[place :: self.number]) for place in range(self.number)]

        def add_gradients(number: int) -> None:
            scores = held[number] if keep else scored(number, graph=True)
            found = _apart(torch.autograd.grad(scores, parameters, shares[number], allow_unused=True))
            for turn in range(len(sums)):  # threads begin with different parameters
                place = (number + turn) % len(sums)
                sums[place].add(number, found[place :: len(sums)])

        # Where one core is slower than another, some batches are ahead of their turn, and hold their gradients.
        self._computed(add_gradients, len(batches), ahead=2 * self.number)
        return value.detach()

    def _computed(self, compute: Callable[[int], R], count: int, *, ahead: int) -> list[R]:
        """What is computed of each number below ``count``; number n is begun when n - ``ahead`` is done."""
        executor = lanes(self.number)
        futures: list[Future[R]] = []
        try:
            for number in range(count):
                if number >= ahead:
                    futures[number - ahead].result()
                futures.append(executor.submit(compute, number))
            return [future.result() for future in futures]
        finally:  # nothing computes on after an error, or an interrupt
            for future in futures:
                future.cancel()
            wait(futures)


def suits(encoder: PairEncoder) -> bool:
    """Whether threads can draw all dropout of an encoder in training mode.

    Of a module of ``transformers`` that is found by trying: where it draws in ways that ``_Draws`` does not know,
    threads would draw from torch's one generator, in any order.
    """
    if isinstance(encoder, CrossEncoder):
        return True
    ids = torch.zeros(1, 4, dtype=torch.int64)
    before = torch.get_rng_state()
    with torch.no_grad(), _Draws(0):
        encoder(ids, ids)
    untouched = before.equal(torch.get_rng_state())
    torch.set_rng_state(before)
    return untouched


class _Draws(TorchFunctionMode):
    """In this thread dropout is drawn from a generator of its own, that of attention too.

    Args:
        seed: Of the generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)
        self._own: dict[Any, Callable[..., Any]] = {
            F.dropout: self._dropout,
            F.scaled_dot_product_attention: self._attention,
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._own.get(func, func)(*args, **(kwargs or {}))

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not (training and p):
            return x
        kept = torch.empty_like(x).bernoulli_(1 - p, generator=self._generator).div_(1 - p)
        return x.mul_(kept) if inplace else x * kept

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """As torch computes it on a CPU where there is dropout."""
        if not dropout_p or is_causal or enable_gqa:  # the last two are not asked for by encoders
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros(attn_mask.shape).masked_fill_(~attn_mask, -math.inf)
            # Finite, since padding may see nothing.
            scores = scores + attn_mask.to(scores.dtype).clamp_min(torch.finfo(scores.dtype).min)
        return self._dropout(scores.softmax(dim=-1), dropout_p) @ value


def _apart(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients that can be added to: autograd may give one tensor for parameters that are added to each other."""
    taken: set[int] = set()
    apart: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is not None:
            gradient = gradient.clone() if gradient.data_ptr() in taken else gradient.contiguous()
            taken.add(gradient.data_ptr())
        apart.append(gradient)
    return apart


class _Sum:
    """Adds gradients to those of parameters in the order of their numbers; none waits for another's turn.

    Args:
        parameters: The parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self._lock = threading.Lock()
        self._early: dict[int, Sequence[Tensor | None]] = {}
        self._due = 0
        self._adding = False

    def add(self, number: int, gradients: Sequence[Tensor | None]) -> None:
        """Adds gradients, or leaves them to the thread that adds those before them.

        Args:
            number: From 0, each once.
            gradients: One per parameter; None: it took no part.
        """
        with self._lock:
            self._early[number] = gradients
            if self._adding:
                return
            self._adding = True
        while (due := self._next()) is not None:
            for parameter, gradient in zip(self.parameters, due, strict=True):
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = gradient
                else:
                    parameter.grad += gradient

    def _next(self) -> Sequence[Tensor | None] | None:
        with self._lock:
            due = self._early.pop(self._due, None)
            if due is None:
                self._adding = False
            else:
                self._due += 1
            return due
