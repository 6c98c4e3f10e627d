from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ElectraForSequenceClassification

from pyterrier_rankdistillm.scoring.attention import Padded
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder, EncoderConfig


def ours(model: Any, head: dict[str, Tensor] | None, **shape: Any) -> CrossEncoder:
    config = EncoderConfig(**{**tiny.SHAPE, **shape})
    state = {name.removeprefix("electra."): tensor for name, tensor in model.state_dict().items()}
    if head is None:
        encoder = CrossEncoder(config, "classification", model.config.num_labels)
    else:
        encoder = CrossEncoder(config, "linear", len(head["linear.weight"]), "linear.bias" in head)
    encoder.load_state_dict({**state, **(head or {})})
    return encoder.eval()


def padded_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Four rows of 12, 9, 5 and 2 tokens, padded with 0."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, len(tiny.VOCAB), (4, 12), generator=generator)
    types = (torch.arange(12) >= 4).long().expand(4, 12).clone()
    mask = torch.arange(12) < torch.tensor([[12], [9], [5], [2]])
    return ids * mask, types * mask, mask


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"embedding_size": 16},
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"layer_norm_eps": 1e-3},
        {"num_hidden_layers": 1},
        {"num_attention_heads": 1},
        {"hidden_size": 64, "num_hidden_layers": 3},
    ],
    ids=str,
)
@torch.inference_mode()
def test_equals_transformers_with_padding(shape: dict[str, Any]) -> None:
    model = tiny.transformers_model(**shape)
    head = tiny.linear_head(hidden=shape.get("hidden_size", 32), bias=True)
    ids, types, mask = padded_batch()
    vectors = model(input_ids=ids, token_type_ids=types, attention_mask=mask.long()).last_hidden_state[:, 0]
    expected = F.linear(vectors, head["linear.weight"], head["linear.bias"])[:, 0]
    scores = ours(model, head, **shape)(ids, types, mask)
    assert scores.shape == (4,)
    assert expected.max() - expected.min() > 1
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_padding_does_not_change_scores() -> None:
    encoder = ours(tiny.transformers_model(), tiny.linear_head())
    ids, types, mask = padded_batch()
    alone = [encoder(row[None, :n], kind[None, :n]) for row, kind, n in zip(ids, types, mask.sum(1), strict=True)]
    torch.testing.assert_close(encoder(ids, types, mask), torch.cat(alone), rtol=0, atol=1e-5)
    assert not torch.allclose(encoder(ids, types), torch.cat(alone), atol=1e-2)  # the mask is what does it


@torch.inference_mode()
def test_a_mask_of_ones_equals_no_mask() -> None:
    encoder = ours(tiny.transformers_model(), tiny.linear_head())
    ids, types, _ = padded_batch()
    expected = encoder(ids, types)
    torch.testing.assert_close(encoder(ids, types, torch.ones_like(ids)), expected, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_token_types_matter() -> None:
    encoder = ours(tiny.transformers_model(), tiny.linear_head())
    ids, types, mask = padded_batch()
    assert (encoder(ids, types, mask) - encoder(ids, torch.zeros_like(types), mask)).abs().max() > 1e-2


@torch.inference_mode()
def test_last_layer_for_the_first_position_equals_the_full_computation() -> None:
    encoder = ours(tiny.transformers_model(), tiny.linear_head())
    ids, types, mask = padded_batch()
    layout = Padded(mask)
    hidden = encoder.embeddings(ids, types, layout)
    for layer in encoder.encoder.layer:
        hidden = layer(hidden, hidden, layout)
    first = encoder.encoder(encoder.embeddings(ids, types, layout), layout)
    torch.testing.assert_close(first, hidden[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [1, 2])
@torch.inference_mode()
def test_classification_head_equals_transformers(labels: int) -> None:
    model = tiny.transformers_model(ElectraForSequenceClassification, num_labels=labels)
    ids, types, mask = padded_batch()
    expected = model(input_ids=ids, token_type_ids=types, attention_mask=mask.long()).logits[:, -1]
    torch.testing.assert_close(ours(model, None)(ids, types, mask), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_two_rows_give_the_log_probability_of_the_second() -> None:
    model, head = tiny.transformers_model(), tiny.linear_head(2)
    ids, types, mask = padded_batch()
    vectors = model(input_ids=ids, token_type_ids=types, attention_mask=mask.long()).last_hidden_state[:, 0]
    logits = F.linear(vectors, head["linear.weight"])
    expected = logits[:, 1] - torch.logsumexp(logits, dim=1)
    scores = ours(model, head)(ids, types, mask)
    assert (scores < 0).all()
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "classification"])
@torch.inference_mode()
def test_the_head_runs_in_float32_under_autocast(kind: str) -> None:
    if kind == "linear":
        encoder = ours(tiny.transformers_model(), tiny.linear_head())
    else:
        encoder = ours(tiny.transformers_model(ElectraForSequenceClassification, num_labels=1), None)
    ids, types, mask = padded_batch()
    vectors = []
    encoder.encoder.register_forward_hook(lambda _module, _inputs, output: vectors.append(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = encoder(ids, types, mask)
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16().float()).any()  # finer than bfloat16 can tell
    head = encoder.linear if kind == "linear" else encoder.classifier
    torch.testing.assert_close(scores, head(vectors[0].float())[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(scores, encoder(ids, types, mask), rtol=0, atol=0.2)


def test_dropout_is_for_training_only() -> None:
    encoder = ours(tiny.transformers_model(), tiny.linear_head())
    ids, types, mask = padded_batch()
    assert torch.equal(encoder(ids, types, mask), encoder(ids, types, mask))
    encoder.train()
    assert not torch.equal(encoder(ids, types, mask), encoder(ids, types, mask))


def test_gradients_reach_every_weight_but_those_of_unused_tokens() -> None:
    encoder = ours(tiny.transformers_model(embedding_size=16), tiny.linear_head(bias=True), embedding_size=16)
    encoder(*padded_batch()).sum().backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert without == []


def test_a_twin_on_the_same_device_shares_the_weights() -> None:
    encoder = ours(tiny.transformers_model(), tiny.linear_head(bias=True)).train()
    twin = encoder.on(torch.device("cpu"))
    assert encoder.training
    assert not twin.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert {name: tensor.data_ptr() for name, tensor in twin.state_dict().items()} == {
        name: tensor.data_ptr() for name, tensor in encoder.state_dict().items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size must be a multiple of num_attention_heads, got 32 and 5"),
        ({"hidden_act": "swish"}, "hidden_act must be one of .*, got 'swish'"),
    ],
)
def test_impossible_shapes_are_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**{**tiny.SHAPE, **change})
