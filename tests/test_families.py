"""Every family of encoders scores as transformers does, opened from its own files and from those written here."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import families
import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from pyterrier_rankdistillm import Checkpoint, CheckpointError, MonoElectra
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder
from pyterrier_rankdistillm.scoring.scorer import Scorer


def scores(opened: Checkpoint, pairs: list[tuple[str, str]] = families.PAIRS, batch_tokens: int = 200) -> np.ndarray:
    scorer = Scorer(opened, device="cpu", batch_tokens=batch_tokens)
    return scorer.score([query for query, _ in pairs], [text for _, text in pairs]).scores


@pytest.mark.parametrize("name", families.KINDS)
def test_scores_equal_transformers_and_so_do_those_of_what_is_written(name: str, tmp_path: Path) -> None:
    folder = families.make(tmp_path / "theirs", name)
    expected = families.scores(folder, families.PAIRS)
    assert np.ptp(expected) > 0.1
    opened = Checkpoint.open(folder)
    assert isinstance(opened.encoder, CrossEncoder) == name.startswith(families.WRITTEN_OUT)
    assert not any(parameter.requires_grad for parameter in opened.encoder.parameters())
    for batch_tokens in (1, 200):
        np.testing.assert_allclose(scores(opened, batch_tokens=batch_tokens), expected, rtol=0, atol=2e-5)
    written = opened.save(tmp_path / "ours", format="transformers")
    np.testing.assert_allclose(families.scores(written, families.PAIRS), expected, rtol=0, atol=2e-5)
    again = Checkpoint.open(written)
    assert again.tokenizer.lengths == opened.tokenizer.lengths
    np.testing.assert_allclose(scores(again), expected, rtol=0, atol=2e-5)
    assert again.encoder is opened.encoder  # equal weights are held once
    assert json.loads((written / "config.json").read_text())["model_type"] == opened.encoder.config.model_type


POOLINGS = ["first", "mean", "max", "sum", "bert_pool"]
BACKBONES = ["electra", "bert", "roberta", "xlm-roberta", "distilbert"]


def lightning_ir(folder: Path, backbone: str, pooling: str, rows: int) -> tuple[Path, np.ndarray]:
    """A ``mono`` over a family, as Lightning IR names it, and its scores by transformers and torch."""
    families.make(folder, backbone, architecture="Model")
    state, head = tiny.load_state(folder), tiny.linear_head(rows, bias=rows == 2)
    vectors = families.vectors(folder, families.PAIRS, "first" if pooling == "bert_pool" else pooling)
    if pooling == "bert_pool":
        dense = tiny.linear_head(32)["linear.weight"] / 2
        head |= {"bert_pool.0.weight": dense, "bert_pool.0.bias": torch.linspace(-1, 1, 32)}
        vectors = torch.tanh(F.linear(vectors, dense, head["bert_pool.0.bias"]))
    tiny.save_state(folder, {n: t for n, t in state.items() if not n.startswith("pooler.")} | head)
    config = {"pooling_strategy": "first" if pooling == "bert_pool" else pooling, "_bert_pool": pooling == "bert_pool"}
    strategy = "rank" if rows == 1 else "mono"
    config |= {"model_type": "mono", "backbone_model_type": backbone, "scoring_strategy": strategy}
    tiny.change_config(folder, **config, query_length=None, doc_length=None)
    logits = F.linear(vectors, head["linear.weight"], head.get("linear.bias"))
    return folder, (logits[:, 0] if rows == 1 else logits.log_softmax(-1)[:, 1]).numpy()


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [("electra", pooling) for pooling in POOLINGS]
    + [(name, "first") for name in BACKBONES[1:]]
    + [("bert", "bert_pool")],
)
def test_lightning_ir_over_every_family_and_pooling(backbone: str, pooling: str, rows: int, tmp_path: Path) -> None:
    folder, expected = lightning_ir(tmp_path / "theirs", backbone, pooling, rows)
    atol = 2e-5 * max(1.0, float(np.abs(expected).max()) / 10)  # sums over 48 tokens are large
    opened = Checkpoint.open(folder)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores(opened), expected, rtol=0, atol=atol)
    again = Checkpoint.open(opened.save(tmp_path / "ours"))
    np.testing.assert_allclose(scores(again), expected, rtol=0, atol=atol)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["model_type"], config["backbone_model_type"]) == ("mono", backbone)
    assert set(tiny.load_state(tmp_path / "ours")) == set(tiny.load_state(folder))


OWN_HEADS = {"electra": "ElectraForSequenceClassification", "distilbert": "DistilBertForSequenceClassification"}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_linear_head_is_written_for_transformers(backbone: str, tmp_path: Path) -> None:
    folder, expected = lightning_ir(tmp_path / "theirs", backbone, "first", 1)
    opened = Checkpoint.open(folder)
    written = opened.save(tmp_path / "ours", format="transformers")
    config = json.loads((written / "config.json").read_text())
    # gelu(x) - gelu(-x) = x, and so for relu; tanh has no such pair, so the others get Sentence Transformers' modules.
    if backbone in OWN_HEADS:
        assert config["architectures"] == [OWN_HEADS[backbone]]
        np.testing.assert_allclose(families.scores(written, families.PAIRS), expected, rtol=0, atol=2e-5)
    else:
        types = [module["type"].rpartition(".")[2] for module in json.loads((written / "modules.json").read_text())]
        assert types == ["Transformer", "Pooling", "Dense"]
        head = tiny.load_state(written / "2_Dense")["linear.weight"]
        theirs = F.linear(families.vectors(written, families.PAIRS, "first"), head)[:, 0]
        np.testing.assert_allclose(theirs.numpy(), expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(scores(Checkpoint.open(written)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("pooling", ["mean", "max", "bert_pool"])
def test_other_poolings_are_written_as_modules(pooling: str, tmp_path: Path) -> None:
    folder, expected = lightning_ir(tmp_path / "theirs", "electra", pooling, 1)
    written = Checkpoint.open(folder).save(tmp_path / "ours", format="transformers")
    assert (written / "modules.json").is_file()
    np.testing.assert_allclose(scores(Checkpoint.open(written)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("pooling", "rows", "what"), [("sum", 1, "pooling 'sum'"), ("first", 2, "a log-probability")])
def test_what_neither_transformers_nor_sentence_transformers_computes_is_not_written(
    pooling: str, rows: int, what: str, tmp_path: Path
) -> None:
    folder, _ = lightning_ir(tmp_path / "theirs", "electra", pooling, rows)
    with pytest.raises(ValueError, match=f"format 'transformers' cannot hold {what}.*format='lightning-ir'"):
        Checkpoint.open(folder).save(tmp_path / "ours", format="transformers")
    assert not (tmp_path / "ours").exists()


def test_two_lengths_become_one_where_they_cannot_be_held_and_the_card_says_so(
    checkpoint: Callable[[str], tiny.Tiny], tmp_path: Path
) -> None:
    opened = Checkpoint.open(checkpoint("lightning-ir-hub").folder)
    written = opened.save(tmp_path / "ours", format="transformers")
    longest = tiny.QUERY_LENGTH + tiny.DOC_LENGTH + 3
    assert json.loads((written / "tokenizer_config.json").read_text())["model_max_length"] == longest
    assert f"cut the pair at {longest} tokens instead" in (written / "README.md").read_text()
    short = [("why does bread rise", "yeast"), ("cat", "the cat sat on the mat"), ("", "")]
    np.testing.assert_allclose(families.scores(written, short, longest), scores(opened, short), rtol=0, atol=2e-5)
    # Opened here the two lengths are still known.
    np.testing.assert_allclose(scores(Checkpoint.open(written)), scores(opened), rtol=0, atol=2e-5)


def test_a_format_that_is_not_known_is_an_error(model: tiny.Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format must be None or one of lightning-ir, transformers, got 'onnx'"):
        Checkpoint.open(model.folder).save(tmp_path / "x", format="onnx")  # type: ignore[arg-type]
    for name, head in (("electra", "classification"), ("modernbert-cls", "ModernBertForSequenceClassification")):
        opened = Checkpoint.open(families.make(tmp_path / name, name))
        with pytest.raises(ValueError, match=f"cannot hold a '{head}' head with 1 rows. Use format='transformers'"):
            opened.save(tmp_path / "x", format="lightning-ir")


# --- lengths ---


@pytest.mark.parametrize("name", ["electra", "roberta", "modernbert-cls", "deberta-v2"])
@pytest.mark.parametrize("longest", [20, 21, 10**30])
def test_a_pair_is_as_long_as_the_tokenizer_says(name: str, longest: int, tmp_path: Path) -> None:
    folder = families.make(tmp_path / "theirs", name, model_max_length=longest)
    expected = families.scores(folder, families.PAIRS, min(longest, 48))
    opened = Checkpoint.open(folder)
    assert opened.tokenizer.lengths.pair == min(longest, 48)
    np.testing.assert_allclose(scores(opened), expected, rtol=0, atol=2e-5)
    assert Checkpoint.open(opened.save(tmp_path / "ours", format="transformers")).tokenizer.lengths.pair == min(
        longest, 48
    )


def test_a_pair_without_room_is_an_error(tmp_path: Path) -> None:
    folder = families.make(tmp_path, "bert", model_max_length=3)
    with pytest.raises(CheckpointError, match="room for more than its 3 special tokens, got 3 tokens"):
        Checkpoint.open(folder)


# --- Sentence Transformers' folders ---


def modular(folder: Path, backbone: str, pooling: str, dense: list[tuple[int, str, bool]]) -> tuple[Path, np.ndarray]:
    """Transformer, Pooling and Dense modules (outputs, activation, bias), and the scores by transformers and torch."""
    families.make(folder, backbone, architecture="Model")
    vectors = families.vectors(folder, families.PAIRS, {"cls": "first"}.get(pooling, pooling))
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense)]
    paths = ["", *(f"{n}_{kind}" for n, kind in enumerate(kinds[1:], start=1))]
    types = [f"sentence_transformers.somewhere.{kind}" for kind in kinds]
    tiny.write_json(folder / "modules.json", [{"path": p, "type": t} for p, t in zip(paths, types, strict=True)])
    (folder / "1_Pooling").mkdir()
    tiny.write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": pooling, "embedding_dimension": 32})
    for n, (path, (outputs, activation, bias)) in enumerate(zip(paths[2:], dense, strict=True)):
        (folder / path).mkdir()
        weights = tiny.linear_head(outputs, bias=bias)
        weights["linear.weight"] = weights["linear.weight"] / (1 + n)
        tiny.save_state(folder / path, weights)
        tiny.write_json(folder / path / "config.json", {"activation_function": f"torch.nn.modules.x.{activation}"})
        vectors = getattr(torch.nn, activation)()(
            F.linear(vectors, weights["linear.weight"], weights.get("linear.bias"))
        )
    return folder, vectors[:, -1].numpy()


@pytest.mark.parametrize(
    ("backbone", "pooling", "dense"),
    [
        ("bert", "cls", [(1, "Identity", True)]),
        ("roberta", "mean", [(1, "Identity", False)]),
        ("electra", "max", [(2, "Identity", True)]),
        ("distilbert", "mean", [(32, "Tanh", True), (1, "Identity", True)]),
        ("bert", "mean", [(32, "GELU", False), (1, "Identity", False)]),
        ("bert", "cls", [(32, "ReLU", True), (2, "Identity", False)]),
    ],
    ids=str,
)
def test_modular_folders_score_as_their_modules_do(
    backbone: str, pooling: str, dense: list[tuple[int, str, bool]], tmp_path: Path
) -> None:
    folder, expected = modular(tmp_path, backbone, pooling, dense)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores(Checkpoint.open(folder)), expected, rtol=0, atol=2e-5)
    trained = Checkpoint.open(folder, new_head_seed=1)  # training starts from its head too
    np.testing.assert_allclose(scores(trained), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        ([(1, "Tanh", True)], r"Dense 0 \(Tanh\) \[1, 32\]"),
        ([(3, "Identity", True)], r"Dense 0 \(Identity\) \[3, 32\]"),
        ([], "an encoder of single texts, not a cross-encoder"),
    ],
)
def test_modular_folders_without_a_score_are_errors(
    dense: list[tuple[int, str, bool]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(modular(tmp_path, "bert", "cls", dense)[0])


def test_other_modules_are_refused_by_name(tmp_path: Path) -> None:
    folder, _ = modular(tmp_path, "bert", "cls", [(1, "Identity", True)])
    modules = json.loads((folder / "modules.json").read_text())
    tiny.write_json(folder / "modules.json", [*modules, {"path": "3_LSTM", "type": "some.models.LSTM"}])
    with pytest.raises(CheckpointError, match=r"modules\.json names LSTM; this package opens a Transformer"):
        Checkpoint.open(folder)
    tiny.write_json(folder / "modules.json", [modules[0], modules[1] | {"path": "../elsewhere"}, modules[2]])
    with pytest.raises(CheckpointError, match=r"a folder outside its own: '\.\./elsewhere'"):
        Checkpoint.open(folder)


# --- heads that are not known, and backbones ---


@pytest.mark.parametrize("name", ["electra", "bert", "roberta", "distilbert", "modernbert-cls"])
def test_a_head_that_is_not_known_is_dropped_only_where_that_is_asked_for(name: str, tmp_path: Path) -> None:
    folder = families.make(tmp_path, name, num_labels=3)
    for options in ({}, {"new_head_seed": 7}):
        with pytest.raises(CheckpointError, match=r"classifier|3 labels"):
            Checkpoint.open(folder, **options)
    with pytest.warns(UserWarning, match=r"its head is dropped.*classifier[\w.]* \[3"):
        opened = Checkpoint.open(folder, new_head_seed=7, drop_head=True)
    assert opened.encoder.outputs == 1
    with pytest.raises(ValueError, match="drop_head needs new_head_seed, got None"):
        Checkpoint.open(folder, drop_head=True)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert-cls", "deberta-v2"])
@pytest.mark.parametrize("architecture", ["ForMaskedLM", "Model"])
def test_a_backbone_gets_a_new_head_by_its_seed_and_is_no_re_ranker(
    name: str, architecture: str, tmp_path: Path
) -> None:
    folder = families.make(tmp_path, name, architecture=architecture)
    with pytest.raises(CheckpointError, match=r"without a scoring head|missing: .*classifier"):
        Checkpoint.open(folder)
    before = torch.random.get_rng_state()
    one, other, same = (scores(Checkpoint.open(folder, new_head_seed=seed)) for seed in (1, 2, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert-mean", "deberta-v2"])
def test_a_copy_is_trained_without_touching_its_origin(name: str, tmp_path: Path) -> None:
    opened = Checkpoint.open(families.make(tmp_path, name))
    expected = scores(opened)
    copied = opened.encoder.copy(dropout=0.0).train().requires_grad_(True)
    copied.recompute_layers(True)
    ids = torch.arange(5, 15).reshape(2, 5)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    first = copied(ids, torch.zeros_like(ids), mask)
    assert first.dtype == torch.float32
    torch.testing.assert_close(copied(ids, torch.zeros_like(ids), mask), first)  # no dropout
    first.sum().backward()
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
    assert all(p.grad is not None for n, p in copied.named_parameters() if "pooler" not in n)
    optimizer.step()
    np.testing.assert_allclose(scores(opened), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert not torch.allclose(copied(ids, torch.zeros_like(ids), mask), first)


# --- sharing ---


def test_open_weights_are_shared_by_content(model: tiny.Tiny, tmp_path: Path) -> None:
    one = MonoElectra(model.folder, device="cpu")
    copied = MonoElectra(tiny.copy(model.folder, tmp_path / "copy"), device="cpu", doc_length=4)
    shorter = one.clone(doc_length=2)
    assert one.checkpoint.encoder is copied.checkpoint.encoder is shorter.checkpoint.encoder
    assert one.scorer.encoder is copied.scorer.encoder is shorter.scorer.encoder
    assert one.scorer.tokenizer.lengths != shorter.scorer.tokenizer.lengths
    assert one.clone(dtype="int8").scorer.encoder is not one.scorer.encoder


def test_a_folder_that_was_saved_over_is_another_model(model: tiny.Tiny, tmp_path: Path) -> None:
    folder = tiny.copy(model.folder, tmp_path / "model")
    old = Checkpoint.open(folder)
    state = tiny.load_state(folder)
    times = (folder / "model.safetensors").stat()
    tiny.save_state(folder, state | {"linear.weight": 2 * state["linear.weight"]})
    os.utime(folder / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    new = Checkpoint.open(folder)
    assert new.encoder is not old.encoder
    np.testing.assert_allclose(scores(new), 2 * scores(old), rtol=0, atol=2e-5)


def test_weights_that_nobody_uses_are_let_go(tmp_path: Path) -> None:
    opened = Checkpoint.open(families.make(tmp_path, "bert"))
    scorer = Scorer(opened, device="cpu")
    kept = [weakref.ref(opened.encoder), weakref.ref(scorer.encoder)]
    del opened, scorer
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_weights_that_were_written_to_are_not_scored_as_they_were(tmp_path: Path) -> None:
    opened = Checkpoint.open(families.make(tmp_path, "bert-relu"))
    before = Scorer(opened, device="cpu")
    first = scores(opened)
    opened.encoder.encoder.layer[0].output.dense.weight.mul_(1.5)
    assert Scorer(opened, device="cpu").encoder is not before.encoder
    assert not np.allclose(scores(opened), first)
