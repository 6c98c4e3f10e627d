from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from transformers import ElectraForSequenceClassification, ElectraModel

from pyterrier_rankdistillm import CheckpointError
from pyterrier_rankdistillm.scoring import writing as module
from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
from pyterrier_rankdistillm.scoring.scorer import Scorer

Copied = Callable[..., Path]
Made = Callable[[str], tiny.Tiny]


def scores(opened: Checkpoint, pairs: list[tuple[str, str]] = tiny.PAIRS) -> list[float]:
    scored = Scorer(opened, device="cpu").score([query for query, _ in pairs], [text for _, text in pairs])
    return [float(score) for score in scored.scores]


def assert_equal_weights(one: Checkpoint, other: Checkpoint) -> None:
    ours, theirs = one.encoder.state_dict(), other.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def message(folder: Path | str, **options: Any) -> str:
    """What the error says when a checkpoint cannot be opened."""
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder, **options)
    return str(error.value)


# --- formats ---


@pytest.mark.parametrize("name", tiny.FORMATS)
def test_every_format_gives_the_scores_of_transformers(checkpoint: Made, name: str) -> None:
    made = checkpoint(name)
    expected = [made.score(query, text) for query, text in tiny.PAIRS]
    assert max(expected) - min(expected) > 1
    assert scores(Checkpoint.open(made.folder)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", tiny.FORMATS)
def test_weights_are_float32_frozen_and_in_evaluation_mode(checkpoint: Made, name: str) -> None:
    encoder = Checkpoint.open(checkpoint(name).folder).encoder
    assert not encoder.training
    assert {(p.dtype, p.device.type, p.requires_grad) for p in encoder.parameters()} == {(torch.float32, "cpu", False)}


def test_half_precision_weights_are_opened_as_float32(copied: Copied) -> None:
    folder = copied()
    tiny.save_state(folder, {name: tensor.half() for name, tensor in tiny.load_state(folder).items()})
    opened = Checkpoint.open(folder)
    assert opened.encoder.linear.weight.dtype == torch.float32
    assert scores(opened) == pytest.approx(scores(Checkpoint.open(copied("lightning-ir-006"))), abs=0.05)


def test_lengths_come_from_the_config(checkpoint: Made) -> None:
    lengths = Checkpoint.open(checkpoint("lightning-ir-hub").folder).tokenizer.lengths
    assert (lengths.query, lengths.doc, lengths.pair) == (tiny.QUERY_LENGTH, tiny.DOC_LENGTH, tiny.POSITIONS)
    lengths = Checkpoint.open(checkpoint("classification-1").folder).tokenizer.lengths
    assert (lengths.query, lengths.doc, lengths.pair) == (None, None, tiny.POSITIONS)


def test_other_lengths_change_what_is_read_and_share_the_weights(model: tiny.Tiny) -> None:
    opened = Checkpoint.open(model.folder)
    shorter = opened.with_lengths(doc=2)
    assert (shorter.tokenizer.lengths.query, shorter.tokenizer.lengths.doc) == (tiny.QUERY_LENGTH, 2)
    assert shorter.encoder is opened.encoder
    assert opened.tokenizer.lengths.doc == tiny.DOC_LENGTH
    expected = model.score("cat", "sun moon")
    assert scores(shorter, [("cat", "sun moon rain snow")]) == pytest.approx([expected], abs=1e-5)
    assert opened.with_lengths() is opened


def test_lengths_beyond_the_positions_are_an_error(model: tiny.Tiny) -> None:
    with pytest.raises(ValueError, match=r"query_length \+ doc_length must be at most 45 tokens"):
        Checkpoint.open(model.folder).with_lengths(doc=40)


def test_a_folder_can_be_a_string_a_path_or_relative(model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.folder.parent)
    for name in (str(model.folder), model.folder, model.folder.name, f"./{model.folder.name}"):
        assert Checkpoint.open(name).revision is None


def test_source_and_repr_name_the_origin(model: tiny.Tiny) -> None:
    opened = Checkpoint.open(model.folder)
    assert opened.source == str(model.folder)
    assert repr(opened) == f"Checkpoint({str(model.folder)!r})"


@pytest.mark.parametrize("name", ["generator_lm_head.bias", "discriminator_predictions.dense.weight", "position_ids"])
def test_left_overs_of_pre_training_are_ignored(copied: Copied, name: str, model: tiny.Tiny) -> None:
    folder = copied()
    tiny.save_state(folder, {**tiny.load_state(folder), name: torch.zeros(3)})
    expected = [model.score(query, text) for query, text in tiny.PAIRS]
    assert scores(Checkpoint.open(folder)) == pytest.approx(expected, abs=1e-5)


def test_safetensors_go_before_a_pickle(copied: Copied) -> None:
    folder = copied()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert Checkpoint.open(folder).encoder.outputs == 1


# --- errors ---


def test_no_folder(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'} is not a folder" in message(tmp_path / "none")
    assert "./none is not a folder" in message("./none")


def test_a_file_is_no_folder(model: tiny.Tiny) -> None:
    assert "config.json is not a folder" in message(model.folder / "config.json")


def test_folder_without_config(copied: Copied) -> None:
    folder = copied()
    (folder / "config.json").unlink()
    assert f"{folder} holds no checkpoint: config.json is missing" in message(folder)


@pytest.mark.parametrize("content", ['{"model_type": "electra",', "", "\x00"])
def test_broken_config(copied: Copied, content: str) -> None:
    folder = copied()
    (folder / "config.json").write_text(content, encoding="utf-8")
    assert "config.json is not valid JSON" in message(folder)


def test_config_that_is_no_object(copied: Copied) -> None:
    folder = copied()
    (folder / "config.json").write_text("[1, 2]", encoding="utf-8")
    assert "config.json must hold a JSON object, got list" in message(folder)


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "vocab_size", "query_length", "doc_length"])
def test_config_without_a_needed_key_is_an_error_that_names_it(copied: Copied, key: str) -> None:
    folder = copied()
    tiny.change_config(folder, drop=(key,))
    assert f"config.json lacks {key} " in message(folder)


def test_all_missing_keys_are_named_at_once(copied: Copied) -> None:
    folder = copied()
    tiny.change_config(folder, drop=("hidden_size", "vocab_size", "doc_length"))
    assert "lacks vocab_size, hidden_size, doc_length " in message(folder)


@pytest.mark.parametrize("value", ["32", None, 32.0, [32]])
def test_sizes_that_are_no_whole_numbers_are_errors(copied: Copied, value: object) -> None:
    folder = copied()
    tiny.change_config(folder, hidden_size=value)
    assert "hidden_size" in message(folder)


@pytest.mark.parametrize("value", [0, "6", 6.5, -1])
def test_lengths_that_are_no_numbers_of_tokens_are_errors(copied: Copied, value: object) -> None:
    folder = copied()
    tiny.change_config(folder, query_length=value)
    assert "query_length" in message(folder)


def test_lengths_that_exceed_the_positions_are_an_error(copied: Copied) -> None:
    folder = copied()
    tiny.change_config(folder, doc_length=512)
    assert "query_length + doc_length must be at most 45" in message(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"]},
        {"model_type": "t5", "architectures": ["T5ForSequenceClassification"]},
        {"model_type": "bart", "architectures": ["BartForSequenceClassification"]},
        {"model_type": "mono", "backbone_model_type": "t5", "architectures": ["MonoT5Model"]},
        {"model_type": ["electra"], "architectures": None},
        {"model_type": None, "architectures": None},
    ],
)
def test_other_models_are_errors_that_name_them(copied: Copied, changes: dict[str, Any]) -> None:
    folder = copied()
    tiny.change_config(folder, **changes)
    text = message(folder)
    assert "is not a cross-encoder that this package knows" in text
    assert repr(changes["model_type"]) in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pooling_strategy", "min"),
        ("pooling_strategy", ["mean"]),
        ("_bert_pool", "yes"),
        ("use_adapter", True),
        ("tokenizer_pattern", "Query: {query}"),
        ("position_embedding_type", "relative_key"),
        ("scoring_strategy", "pair"),
        ("hidden_act", "swish"),
    ],
)
def test_settings_that_would_change_the_score_are_errors_that_name_them(copied: Copied, key: str, value: Any) -> None:
    folder = copied("lightning-ir-006")
    tiny.change_config(folder, **{key: value})
    text = message(folder)
    assert key in text
    assert repr(value) in text


WRONG_SETTINGS: list[tuple[str, Any]] = [
    *((key, value) for key in ("num_attention_heads", "vocab_size", "hidden_size", "max_position_embeddings")
      for value in (0, -1, True, 10**30)),
    ("num_hidden_layers", 10**6),
    ("num_hidden_layers", 10**9),
    *(("type_vocab_size", value) for value in ("x", -1, True, [2], 10**30)),
    *(("layer_norm_eps", value) for value in ("x", 0, -1e-5, True, [], float("nan"), float("inf"))),
    *(("pad_token_id", value) for value in ("x", -1, True, 10**6)),
    *(("hidden_dropout_prob", value) for value in ("x", -0.1, 1.5, True)),
    *(("hidden_act", value) for value in ([], 3, {})),
    ("initializer_range", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG_SETTINGS, ids=str)
def test_settings_that_no_encoder_can_have_are_errors_that_name_them_at_once(
    copied: Copied, key: str, value: Any
) -> None:
    folder = copied()
    tiny.change_config(folder, **{key: value})
    started = time.monotonic()
    text = message(folder)
    assert key in text or (key == "num_hidden_layers" and "missing: encoder.layer.2." in text)
    assert str(folder) in text
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["modernbert-cls", "deberta-v2"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**6), ("hidden_size", -1), ("vocab_size", True), ("num_attention_heads", 0),
     ("num_attention_heads", 5), ("intermediate_size", 10**30), ("hidden_size", "x")],
)  # fmt: skip
def test_so_they_are_for_transformers_own_modules(tmp_path: Path, name: str, key: str, value: Any) -> None:
    folder = families.make(tmp_path, name)
    tiny.change_config(folder, **{key: value})
    started = time.monotonic()
    assert str(folder) in message(folder)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["modernbert-cls", "deberta-v2", "albert"])
def test_transformers_own_modules_want_all_weights_and_no_others(tmp_path: Path, name: str) -> None:
    folder = families.make(tmp_path / name, name)
    state = tiny.load_state(folder)
    lost = next(weight for weight in state if "LayerNorm.weight" in weight or "norm.weight" in weight)
    tiny.save_state(folder, {weight: tensor for weight, tensor in state.items() if weight != lost})
    assert f"missing: {lost}" in message(folder)
    tiny.save_state(folder, {**state, "adapter.down.weight": torch.zeros(4, 32)})
    assert "unexpected: adapter.down.weight" in message(folder)
    tiny.save_state(folder, state | {lost: torch.zeros(7)})
    assert f"wrong shape: {lost}" in message(folder)


def test_config_nested_without_end_is_an_error(copied: Copied) -> None:
    folder = copied()
    (folder / "config.json").write_text("[" * 200_000)
    assert "config.json is not valid JSON" in message(folder)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("name", ["lightning-ir-hub", "classification-1", "modernbert-cls"])
def test_weights_that_are_no_floating_point_numbers_of_16_bits_are_errors(
    checkpoint: Made, tmp_path: Path, name: str, dtype: str
) -> None:
    folder = tmp_path / "model"
    if name in tiny.FORMATS:
        tiny.copy(checkpoint(name).folder, folder)
    else:
        families.make(folder, name)
    state = tiny.load_state(folder)
    one = next(weight for weight in state if weight.endswith(("dense.weight", "Wo.weight")))
    for changed in ({one}, set(state)):  # one of them, and all
        quantised = {n: (t * 9).clamp(-9, 9).to(getattr(torch, dtype)) if n in changed else t for n, t in state.items()}
        tiny.save_state(folder, quantised)
        text = message(folder)
        assert f"({dtype})" in text
        assert "quantised" in text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floating_point_numbers_are_opened_as_float32(copied: Copied, model: tiny.Tiny, dtype: str) -> None:
    folder = copied()
    tiny.save_state(folder, {n: t.to(getattr(torch, dtype)) for n, t in tiny.load_state(folder).items()})
    expected = [model.score(query, text) for query, text in tiny.PAIRS]
    assert scores(Checkpoint.open(folder)) == pytest.approx(expected, abs=1e-5 if dtype == "float64" else 0.3)


def test_token_ids_and_types_beyond_the_tables_are_errors(copied: Copied) -> None:
    folder = copied()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]

    def renumbered(token_id: Any) -> None:
        model = tokenizer["model"] | {"vocab": vocab | {"onion": token_id}}
        tiny.write_json(folder / "tokenizer.json", tokenizer | {"model": model})

    renumbered(900)
    assert f"has 901 tokens, the encoder embeds only {len(tiny.VOCAB)}" in message(folder)  # as many as before
    for wild in (2**31, -1, "x", 2**70):
        renumbered(wild)
        assert "tokenizer.json cannot be read: token ids must be whole numbers" in message(folder)
    tiny.write_json(folder / "tokenizer.json", tokenizer)
    state = tiny.load_state(folder)
    types = "embeddings.token_type_embeddings.weight"
    tiny.save_state(folder, state | {types: state[types][:1].clone()})
    tiny.change_config(folder, type_vocab_size=1)
    assert "gives 2 token types, the encoder embeds only 1" in message(folder)


def test_a_tokenizer_config_that_is_no_object_is_an_error(copied: Copied) -> None:
    folder = copied()
    (folder / "tokenizer_config.json").write_text("[1]")
    assert "tokenizer_config.json cannot be read: it must hold a JSON object, got list" in message(folder)


def test_texts_cut_at_the_left_are_an_error(copied: Copied) -> None:
    folder = copied()
    tiny.write_json(folder / "tokenizer_config.json", {"truncation_side": "left"})
    assert "truncation_side must be 'right', got 'left'" in message(folder)


@pytest.mark.parametrize("lines", [20, 100, 166])
def test_a_cut_vocabulary_is_an_error(copied: Copied, lines: int) -> None:
    folder = copied("vocab-txt")
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    (folder / "vocab.txt").write_text("\n".join(tokens[:lines]) + "\n", encoding="utf-8")
    assert f"it has {lines} tokens, the encoder embeds {len(tiny.VOCAB)}" in message(folder)


def test_a_longer_vocabulary_is_an_error(copied: Copied) -> None:
    folder = copied("vocab-txt")
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("more\n")
    assert f"embeds only {len(tiny.VOCAB)}" in message(folder)


def test_heads_that_do_not_divide_the_size_are_an_error(copied: Copied) -> None:
    folder = copied()
    tiny.change_config(folder, num_attention_heads=5)
    assert "num_attention_heads" in message(folder)


def test_missing_weights_are_named(copied: Copied) -> None:
    folder = copied()
    state = tiny.load_state(folder)
    del state["encoder.layer.1.output.dense.weight"], state["embeddings.LayerNorm.bias"]
    tiny.save_state(folder, state)
    text = message(folder)
    assert "missing: embeddings.LayerNorm.bias, encoder.layer.1.output.dense.weight" in text
    assert str(folder) in text


def test_unexpected_weights_are_named_with_their_shape(copied: Copied) -> None:
    folder = copied()
    tiny.save_state(folder, {**tiny.load_state(folder), "adapter.down.weight": torch.zeros(4, 32)})
    assert "adapter.down.weight [4, 32]" in message(folder)


def test_more_layers_than_the_config_says_are_an_error(copied: Copied) -> None:
    folder = copied()
    tiny.change_config(folder, num_hidden_layers=1)
    assert "encoder.layer.1." in message(folder)


def test_fewer_layers_than_the_config_says_are_an_error(copied: Copied) -> None:
    folder = copied()
    tiny.change_config(folder, num_hidden_layers=3)
    assert "missing: encoder.layer.2." in message(folder)


def test_weights_of_a_wrong_shape_are_named_with_both_shapes(copied: Copied) -> None:
    folder = copied()
    tiny.change_config(folder, intermediate_size=128)
    assert "encoder.layer.0.intermediate.dense.weight is [64, 32] instead of [128, 32]" in message(folder)


def test_a_head_of_a_wrong_shape_is_an_error(copied: Copied) -> None:
    folder = copied()
    tiny.save_state(folder, {**tiny.load_state(folder), "linear.weight": torch.zeros(1, 16)})
    assert "linear.weight [1, 16]" in message(folder)


def test_a_classification_head_with_three_labels_is_an_error(tmp_path: Path) -> None:
    tiny.classification(tmp_path, 3)
    assert "classifier.out_proj.weight [3, 32]" in message(tmp_path)


def test_two_heads_are_an_error(copied: Copied) -> None:
    folder = copied()
    tiny.save_state(folder, {**tiny.load_state(folder), "score.weight": torch.zeros(1, 32)})
    assert "score.weight [1, 32]" in message(folder)


def test_two_rows_under_the_rank_strategy_are_an_error(copied: Copied) -> None:
    folder = copied("mono-two-rows")
    tiny.change_config(folder, scoring_strategy="rank")
    text = message(folder)
    assert "'rank'" in text
    assert "linear.weight [2, 32]" in text


def test_one_row_under_the_mono_strategy_is_an_error(copied: Copied) -> None:
    folder = copied("lightning-ir-006")
    tiny.change_config(folder, scoring_strategy="mono")
    text = message(folder)
    assert "'mono'" in text
    assert "linear.weight [1, 32]" in text


@pytest.mark.parametrize("kind", [tiny.ElectraForPreTraining, ElectraModel])
def test_a_backbone_without_a_head_is_an_error_that_says_so(tmp_path: Path, kind: type) -> None:
    text = message(tiny.backbone(tmp_path, kind))
    assert "backbone without a scoring head" in text
    assert "rank at random" in text


def test_lightning_ir_checkpoint_without_its_head_is_an_error(copied: Copied) -> None:
    folder = copied()
    state = tiny.load_state(folder)
    del state["linear.weight"]
    tiny.save_state(folder, state)
    assert "without a scoring head" in message(folder)


def test_no_weights(copied: Copied) -> None:
    folder = copied()
    (folder / "model.safetensors").unlink()
    assert f"{folder} holds no weights: expected model.safetensors" in message(folder)


@pytest.mark.parametrize("size", [0, 4, 100, 20_000])
def test_truncated_weights_are_an_error(copied: Copied, size: int) -> None:
    folder = copied()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert f"The weights in {folder} cannot be read" in message(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "sub/secret.safetensors"])
def test_an_index_that_names_a_file_outside_the_folder_is_an_error(copied: Copied, name: str) -> None:
    folder = copied("sharded")
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder.parent / "secret.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    tiny.write_json(folder / "model.safetensors.index.json", index)
    text = message(folder)
    assert "outside the folder" in text
    assert name in text


def test_an_index_without_one_of_its_shards_is_an_error(copied: Copied) -> None:
    folder = copied("sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in message(folder)


def test_an_index_that_names_a_weight_its_shard_lacks_is_an_error(copied: Copied) -> None:
    folder = copied("sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["linear.bias"] = "model-00001-of-00002.safetensors"
    tiny.write_json(folder / "model.safetensors.index.json", index)
    assert "linear.bias named in model.safetensors.index.json" in message(folder)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": 3}', "{"])
def test_a_broken_index_is_an_error(copied: Copied, content: str) -> None:
    folder = copied("sharded")
    (folder / "model.safetensors.index.json").write_text(content)
    assert f"The weights in {folder} cannot be read" in message(folder)


def test_no_tokenizer(copied: Copied) -> None:
    folder = copied()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    assert "expected tokenizer.json or vocab.txt" in message(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", ""),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", ""),
    ],
)
def test_a_broken_tokenizer_file_is_an_error_that_names_it(copied: Copied, file: str, content: str) -> None:
    folder = copied()
    (folder / file).write_text(content)
    assert file in message(folder)


def test_a_vocabulary_without_special_tokens_is_an_error_that_names_one(copied: Copied) -> None:
    folder = copied("vocab-txt")
    (folder / "vocab.txt").write_text("cat\nsun\n[PAD]\n")
    assert "[SEP]" in message(folder)


def test_a_tokenizer_larger_than_the_vocabulary_is_an_error_with_both_numbers(copied: Copied) -> None:
    folder = copied()
    tiny.write_tokenizer(folder, vocab=[*tiny.VOCAB, "more"])
    text = message(folder)
    assert str(len(tiny.VOCAB) + 1) in text
    assert f"embeds only {len(tiny.VOCAB)}" in text


def test_a_smaller_tokenizer_is_allowed(copied: Copied) -> None:
    folder = copied()
    tiny.write_tokenizer(folder, vocab=tiny.VOCAB[:-1])
    assert Checkpoint.open(folder).tokenizer.tokenizer.get_vocab_size() == len(tiny.VOCAB) - 1


def test_revision_with_a_folder_is_an_error(model: tiny.Tiny) -> None:
    text = message(model.folder, revision="main")
    assert "revision='main'" in text
    assert "is a folder" in text


def test_checkpoint_error_is_a_value_error() -> None:
    assert issubclass(CheckpointError, ValueError)


# --- what is never run ---

TRAP = """
from pathlib import Path
Path({mark!r}).write_text("run")
raise SystemExit("remote code was run")
"""


def test_remote_code_is_never_run(copied: Copied, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = copied("port-electra-prefix")
    names = ["modeling", "configuration_electra", "tokenization", "__init__", "conftest"]
    for name in names:
        (folder / f"{name}.py").write_text(TRAP.format(mark=str(mark)))
    tiny.change_config(
        folder,
        auto_map={
            "AutoConfig": "configuration_electra.Config",
            "AutoModel": "modeling.Model",
            "AutoTokenizer": ["tokenization.Tokenizer", None],
        },
    )
    scores(Checkpoint.open(folder))
    assert not mark.exists()
    assert str(folder) not in sys.path


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_objects_is_refused_and_not_executed(copied: Copied, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = copied("pytorch-bin")
    torch.save({"linear.weight": Evil(mark)}, folder / "pytorch_model.bin")
    assert f"The weights in {folder} cannot be read" in message(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    assert f"The weights in {folder} cannot be read" in message(folder)
    assert not mark.exists()


@pytest.mark.parametrize("content", [[1, 2], {"linear.weight": 3}, torch.zeros(2)])
def test_a_pickle_that_holds_no_named_tensors_is_an_error(copied: Copied, content: Any) -> None:
    folder = copied("pytorch-bin")
    torch.save(content, folder / "pytorch_model.bin")
    assert f"{folder / 'pytorch_model.bin'} holds no tensors by name" in message(folder)


# --- the hub ---


class Hub:
    """Stands in for ``huggingface_hub.snapshot_download``: a folder from which only matching files are given."""

    def __init__(self, origin: Path, cache: Path) -> None:
        self.origin, self.folder = origin, cache / "models--owner--name" / "snapshots" / "0123abc"
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def __call__(self, repo_id: str, **options: Any) -> str:
        self.calls.append({"repo_id": repo_id, **options})
        if self.error is not None:
            raise self.error
        self.folder.mkdir(parents=True, exist_ok=True)
        for pattern in options["allow_patterns"]:
            for file in self.origin.glob(pattern):
                shutil.copy(file, self.folder)
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Hub]:
    def make(origin: Path) -> Hub:
        fake = Hub(origin, tmp_path)
        monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
        monkeypatch.chdir(tmp_path)
        return fake

    return make


def test_a_hub_id_is_fetched_and_its_commit_recorded(hub: Callable[[Path], Hub], model: tiny.Tiny) -> None:
    fake = hub(model.folder)
    opened = Checkpoint.open("owner/name", revision="v1", local_files_only=True)
    (call,) = fake.calls
    assert (call["repo_id"], call["revision"], call["local_files_only"]) == ("owner/name", "v1", True)
    assert (opened.source, opened.revision) == ("owner/name", "0123abc")
    assert repr(opened) == "Checkpoint('owner/name', revision='0123abc')"
    expected = [model.score(query, text) for query, text in tiny.PAIRS]
    assert scores(opened) == pytest.approx(expected, abs=1e-5)


def test_by_default_the_main_branch_is_fetched_over_the_network(hub: Callable[[Path], Hub], model: tiny.Tiny) -> None:
    fake = hub(model.folder)
    Checkpoint.open("name-without-owner")
    (call,) = fake.calls
    assert (call["repo_id"], call["revision"], call["local_files_only"]) == ("name-without-owner", None, False)


def test_neither_code_nor_other_weights_are_fetched(hub: Callable[[Path], Hub], copied: Copied) -> None:
    folder = copied()
    for name in ("modeling.py", "pytorch_model.bin", "tf_model.h5", "optimizer.pt", "onnx.safetensors"):
        (folder / name).write_text("not wanted")
    fake = hub(folder)
    Checkpoint.open("owner/name")
    assert sorted(file.name for file in fake.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]


def test_shards_are_fetched_with_their_index(hub: Callable[[Path], Hub], checkpoint: Made) -> None:
    made = checkpoint("sharded")
    hub(made.folder)
    assert scores(Checkpoint.open("owner/name"))[0] == pytest.approx(made.score(*tiny.PAIRS[0]), abs=1e-5)


def test_a_pickle_is_fetched_only_where_there_is_no_safetensors_file(
    hub: Callable[[Path], Hub], checkpoint: Made
) -> None:
    made = checkpoint("pytorch-bin")
    fake = hub(made.folder)
    opened = Checkpoint.open("owner/name", revision="v1")
    assert ["pytorch_model.bin" in call["allow_patterns"] for call in fake.calls] == [False, True]
    assert [call["revision"] for call in fake.calls] == ["v1", "v1"]
    assert scores(opened)[0] == pytest.approx(made.score(*tiny.PAIRS[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("local_files_only", "where"), [(False, "the Hugging Face hub did not give it"), (True, "local cache")]
)
def test_failures_of_the_hub_are_errors_that_name_the_id(
    hub: Callable[[Path], Hub], model: tiny.Tiny, local_files_only: bool, where: str
) -> None:
    fake = hub(model.folder)
    fake.error = ConnectionError("no route to host")
    text = message("owner/name", revision="v1", local_files_only=local_files_only)
    for part in ("'owner/name'", "revision 'v1'", where, "ConnectionError: no route to host"):
        assert part in text


def test_a_folder_with_the_name_of_a_hub_id_goes_first(
    hub: Callable[[Path], Hub], model: tiny.Tiny, tmp_path: Path
) -> None:
    fake = hub(model.folder)
    tiny.copy(model.folder, tmp_path / "owner" / "name")
    assert Checkpoint.open("owner/name").revision is None
    assert fake.calls == []


@pytest.mark.parametrize("name", ["a/b/c", "/abs/olute", "./here", "../there", "~/home", "with space/x", ""])
def test_names_that_can_only_be_folders_never_go_to_the_hub(
    hub: Callable[[Path], Hub], model: tiny.Tiny, name: str
) -> None:
    fake = hub(model.folder)
    assert "is not a folder" in message(name) or "config.json is missing" in message(name)
    assert fake.calls == []


# --- saving ---


@pytest.mark.parametrize("name", tiny.FORMATS)
def test_saved_and_opened_again_the_scores_are_equal(checkpoint: Made, tmp_path: Path, name: str) -> None:
    opened = Checkpoint.open(checkpoint(name).folder)
    target = tmp_path / "saved"
    assert opened.save(target) == target
    again = Checkpoint.open(target)
    assert scores(again) == pytest.approx(scores(opened), abs=1e-5)
    assert_equal_weights(again, opened)
    assert again.tokenizer.lengths == opened.tokenizer.lengths


def test_saved_lightning_ir_format(checkpoint: Made, tmp_path: Path) -> None:
    folder = Checkpoint.open(checkpoint("lightning-ir-hub-bias").folder).save(tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    assert (
        config.items()
        >= {
            "architectures": ["MonoElectraModel"],
            "model_type": "mono",
            "backbone_model_type": "electra",
            "pooling_strategy": "first",
            "scoring_strategy": "rank",
            "linear_bias": True,
            "query_length": tiny.QUERY_LENGTH,
            "doc_length": tiny.DOC_LENGTH,
            "hidden_size": 32,
            "vocab_size": len(tiny.VOCAB),
        }.items()
    )
    original = tiny.load_state(checkpoint("lightning-ir-hub-bias").folder)
    saved = tiny.load_state(folder)
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in saved)
    assert (folder / "vocab.txt").read_text(encoding="utf-8").split("\n") == [*tiny.VOCAB, ""]
    assert (
        json.loads((folder / "tokenizer_config.json").read_text()).items()
        >= {
            "tokenizer_class": "CrossEncoderTokenizer",
            "do_lower_case": True,
            "query_length": tiny.QUERY_LENGTH,
            "doc_length": tiny.DOC_LENGTH,
        }.items()
    )


@pytest.mark.parametrize("labels", [1, 2])
def test_saved_classification_heads_open_in_transformers(checkpoint: Made, tmp_path: Path, labels: int) -> None:
    made = checkpoint(f"classification-{labels}")
    folder = Checkpoint.open(made.folder).save(tmp_path / "saved")
    model = ElectraForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.num_labels == labels
    score = tiny.scoring(model, tiny.write_tokenizer(tmp_path), {}, None)
    for query, text in tiny.PAIRS:
        assert score(query, text) == pytest.approx(made.score(query, text), abs=1e-5)


def test_changed_lengths_are_saved(model: tiny.Tiny, tmp_path: Path) -> None:
    folder = Checkpoint.open(model.folder).with_lengths(query=3, doc=9).save(tmp_path / "saved")
    lengths = Checkpoint.open(folder).tokenizer.lengths
    assert (lengths.query, lengths.doc) == (3, 9)


def test_the_model_card_names_the_origin_and_the_lengths(model: tiny.Tiny, tmp_path: Path) -> None:
    card = (Checkpoint.open(model.folder).save(tmp_path / "saved") / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert f"Weights from: {model.folder.name}." in card
    assert str(model.folder) not in card  # a card is published
    assert f"cut to {tiny.DOC_LENGTH} tokens" in card


def test_the_model_card_of_a_checkpoint_without_lengths_names_none(checkpoint: Made, tmp_path: Path) -> None:
    folder = Checkpoint.open(checkpoint("lengths-none").folder).save(tmp_path / "saved")
    assert "None" not in (folder / "README.md").read_text(encoding="utf-8")


def test_the_model_card_of_a_classification_head_does_not_claim_another_format(
    checkpoint: Made, tmp_path: Path
) -> None:
    folder = Checkpoint.open(checkpoint("classification-1").folder).save(tmp_path / "saved")
    assert "Format: Lightning IR" not in (folder / "README.md").read_text(encoding="utf-8")


def test_a_model_card_of_ones_own(model: tiny.Tiny, tmp_path: Path) -> None:
    folder = Checkpoint.open(model.folder).save(tmp_path / "saved", model_card="# Mine \u00e9\n")
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Mine \u00e9\n"


def test_parents_are_made_and_nothing_else_is_left(model: tiny.Tiny, tmp_path: Path) -> None:
    folder = Checkpoint.open(model.folder).save(tmp_path / "new" / "deep" / "saved")
    assert [file.name for file in folder.parent.iterdir()] == ["saved"]


def test_saving_over_a_checkpoint_replaces_it(checkpoint: Made, tmp_path: Path) -> None:
    target = Checkpoint.open(checkpoint("sharded").folder).save(tmp_path / "saved")
    (target / "leftover.txt").write_text("old")
    other = Checkpoint.open(checkpoint("projection").folder)
    other.save(target)
    assert not (target / "leftover.txt").exists()
    assert_equal_weights(Checkpoint.open(target), other)
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


def test_saving_over_the_folder_it_was_opened_from(copied: Copied) -> None:
    folder = copied()
    opened = Checkpoint.open(folder)
    expected = scores(opened)
    opened.save(folder)
    assert scores(Checkpoint.open(folder)) == pytest.approx(expected, abs=1e-5)
    assert scores(opened) == expected  # its weights are not read from the file that has gone


def test_an_empty_folder_is_filled(model: tiny.Tiny, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    Checkpoint.open(model.folder).save(tmp_path / "saved")
    assert Checkpoint.open(tmp_path / "saved").encoder.outputs == 1


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_checkpoint_is_not_overwritten(model: tiny.Tiny, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "precious"
    file = target if kind == "file" else target / "thesis.tex"
    file.parent.mkdir(exist_ok=True)
    file.write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a checkpoint folder"):
        Checkpoint.open(model.folder).save(target)
    assert file.read_text() == "years of work"


@pytest.mark.parametrize("function", ["save_file", "_write_json"])
def test_a_failure_in_the_middle_leaves_no_folder(
    model: tiny.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    opened = Checkpoint.open(model.folder)
    monkeypatch.setattr(module, function, disk_full)
    with pytest.raises(OSError, match="No space left"):
        opened.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_leaves_the_old_checkpoint(
    copied: Copied, checkpoint: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = copied()
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    opened = Checkpoint.open(checkpoint("projection").folder)
    monkeypatch.setattr(module, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        opened.save(target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    assert [file.name for file in target.parent.iterdir()] == [target.name]


def disk_full(*_arguments: Any, **_options: Any) -> None:
    raise OSError(28, "No space left on device")


def test_saved_files_are_readable_as_ordinary_files_are(model: tiny.Tiny, tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    (tmp_path / "ordinary" / "file").write_text("")
    folder = Checkpoint.open(model.folder).save(tmp_path / "saved")
    assert folder.stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    ordinary = (tmp_path / "ordinary" / "file").stat().st_mode
    assert {file.name: file.stat().st_mode for file in folder.iterdir()} == {
        file.name: ordinary for file in folder.iterdir()
    }


# --- new heads, for training ---


def head(folder: Path, seed: int) -> torch.Tensor:
    weight: torch.Tensor = Checkpoint.open(folder, new_head_seed=seed).encoder.linear.weight
    return weight


@pytest.mark.parametrize("kind", [tiny.ElectraForPreTraining, ElectraModel])
def test_a_new_head_is_drawn_from_its_seed(tmp_path: Path, kind: type) -> None:
    folder = tiny.backbone(tmp_path, kind)
    assert head(folder, 1).shape == (1, 32)
    assert torch.equal(head(folder, 1), head(folder, 1))
    assert not torch.equal(head(folder, 1), head(folder, 2))
    assert head(folder, 1).std() == pytest.approx(0.02, rel=0.5)  # initializer_range


def test_a_new_head_keeps_the_backbone(tmp_path: Path) -> None:
    opened = Checkpoint.open(tiny.backbone(tmp_path), new_head_seed=0)
    state = opened.encoder.state_dict()
    expected = tiny.transformers_model(tiny.ElectraForPreTraining).electra.state_dict()
    assert state.keys() - expected.keys() == {"linear.weight"}
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_new_head_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    folder = tiny.backbone(tmp_path)
    before = torch.random.get_rng_state()
    head(folder, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_opening_leaves_the_global_random_state_alone(model: tiny.Tiny) -> None:
    before = torch.random.get_rng_state()
    Checkpoint.open(model.folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_new_head_on_a_broken_backbone_is_an_error_still(tmp_path: Path) -> None:
    folder = tiny.backbone(tmp_path)
    state = tiny.load_state(folder)
    del state["electra.embeddings.LayerNorm.bias"]
    tiny.save_state(folder, state)
    assert "missing: embeddings.LayerNorm.bias" in message(folder, new_head_seed=0)


def test_a_checkpoint_with_a_new_head_is_saved_and_opened(tmp_path: Path) -> None:
    opened = Checkpoint.open(tiny.backbone(tmp_path / "backbone"), new_head_seed=0)
    folder = opened.save(tmp_path / "saved")
    assert_equal_weights(Checkpoint.open(folder), opened)
