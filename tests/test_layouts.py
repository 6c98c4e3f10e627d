"""Batches without padding score as padded ones do, over every family and pooling."""

from __future__ import annotations

from pathlib import Path

import families
import numpy as np
import pytest
import torch
from test_families import POOLINGS, lightning_ir
from torch import Tensor
from torch.nn import functional as F

from pyterrier_rankdistillm import Checkpoint
from pyterrier_rankdistillm.scoring import attention
from pyterrier_rankdistillm.scoring.scorer import Scorer


def by_pair(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, key_offsets: Tensor, longest: int, longest_key: int
) -> Tensor:
    """Attention pair by pair, with torch's own function; also on a CPU."""
    lengths, key_lengths = offsets.diff().tolist(), key_offsets.diff().tolist()
    assert (max(lengths), max(key_lengths)) == (longest, longest_key)
    parts = zip(query.split(lengths), key.split(key_lengths), value.split(key_lengths), strict=True)
    contexts = [F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part))[0] for part in parts]
    return torch.cat([context.transpose(0, 1) for context in contexts])


def scores(opened: Checkpoint, kernel: attention.Kernel | None) -> np.ndarray:
    scorer = Scorer(opened, device="cpu", batch_tokens=300)
    (place,) = scorer.places
    assert place.kernel is None  # batches are padded on a CPU
    place.kernel = kernel
    return scorer.score(*(list(texts) for texts in zip(*families.PAIRS, strict=True))).scores


@pytest.mark.parametrize("name", [name for name in families.KINDS if name.startswith(families.WRITTEN_OUT)])
def test_packed_batches_score_as_padded_ones(name: str, tmp_path: Path) -> None:
    opened = Checkpoint.open(families.make(tmp_path / "model", name))
    padded = scores(opened, None)
    np.testing.assert_allclose(scores(opened, by_pair), padded, rtol=0, atol=1e-5)
    assert np.ptp(padded) > 0.1


@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_batches_are_pooled_as_padded_ones(pooling: str, tmp_path: Path) -> None:
    folder, expected = lightning_ir(tmp_path / "model", "electra", pooling, 1)
    opened = Checkpoint.open(folder)
    near = 1e-5 * max(1.0, float(np.abs(expected).max()) / 10)
    np.testing.assert_allclose(scores(opened, by_pair), scores(opened, None), rtol=0, atol=near)


def test_a_kernel_that_attends_beyond_its_pair_is_not_used() -> None:
    def over_all(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (query, key, value)))[0].transpose(
            0, 1
        )

    device = torch.device("cpu")
    assert attention._works(by_pair, device, torch.float32, 8)
    assert attention._works(by_pair, device, torch.bfloat16, 8)
    assert not attention._works(over_all, device, torch.float32, 8)
    assert attention.kernel(device, torch.float32, 8) is None


@pytest.mark.gpu
@pytest.mark.parametrize("head_size", [8, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_has_a_kernel(dtype: torch.dtype, head_size: int) -> None:
    assert attention.kernel(torch.device("cuda"), dtype, head_size) is not None
    assert attention._works(attention.efficient, torch.device("cuda"), dtype, head_size)
