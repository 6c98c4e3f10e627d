"""Opening and saving cross-encoder checkpoints.

One reader for all formats: the weights' names decide what a checkpoint is, ``config.json`` gives its sizes and lengths.
Whatever is missing, left over or of another shape than the configuration says is an error, so that a score is never
made by weights that nobody trained. Code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .encoder import CrossEncoder, EncoderConfig
from .tokenizer import Lengths, PairTokenizer

DEMO = "rankdistillm:demo"
"""The name of the checkpoint that ships with the package."""

_LIGHTNING_IR = ("mono", "cross-encoder")  # model_type as 0.0.6 writes it, and as on the hub
_REQUIRED = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
# Buffers and pre-training heads that published files carry beside the weights that score.
_IGNORED = re.compile(r"(^|\.)position_ids$|^(discriminator|generator)_(predictions|lm_head)\.|^generator_")


class CheckpointError(ValueError):
    """A checkpoint that cannot be opened as a re-ranker; the message names what is missing or wrong."""


@dataclass(eq=False, repr=False)
class Checkpoint:
    """An open checkpoint: a cross-encoder with its tokenizer.

    Args:
        encoder: The weights, float32, in evaluation mode.
        tokenizer: With the checkpoint's own lengths.
        source: Where it came from: a hub id, a folder, or what made it.
        revision: The commit on the hub, where it came from there.
    """

    encoder: CrossEncoder
    tokenizer: PairTokenizer
    source: str
    revision: str | None = None

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}" + (f", revision={self.revision!r})" if self.revision else ")")

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        new_head_seed: int | None = None,
    ) -> Checkpoint:
        """Opens a checkpoint folder, a Hugging Face hub id, or ``"rankdistillm:demo"``.

        Reads Lightning IR's format, ports of it with other names for the head, ``ElectraForSequenceClassification``
        with one or two labels, each in one or several safetensors files. ``pytorch_model.bin`` is read only where
        there is no safetensors file, and then without unpickling objects.

        Args:
            model: Folder, hub id, or ``"rankdistillm:demo"``.
            revision: Branch, tag or commit on the hub; default: its main branch.
            local_files_only: Use the hub's local cache only.
            new_head_seed: For training: a backbone without a head gets a new one, drawn from this seed. None (for
                re-ranking): a missing head is an error.

        Raises:
            CheckpointError: The checkpoint cannot be found, read, or used for re-ranking.
        """
        folder, commit = locate(model, revision=revision, local_files_only=local_files_only)
        config = _read_config(folder)
        weights = {_bare_name(name): tensor for name, tensor in _read_weights(folder).items()}
        weights = {name: tensor for name, tensor in weights.items() if not _IGNORED.search(name)}
        encoder = _build_encoder(config, weights, source=str(model), new_head_seed=new_head_seed)
        try:
            tokenizer = PairTokenizer.from_folder(folder, _lengths(config, encoder.config.max_position_embeddings))
        except (ValueError, FileNotFoundError) as error:
            raise CheckpointError(f"{model}: {error}") from error
        if tokenizer.tokenizer.get_vocab_size() > encoder.config.vocab_size:
            raise CheckpointError(
                f"{model}: the tokenizer has {tokenizer.tokenizer.get_vocab_size()} tokens, the encoder embeds only "
                f"{encoder.config.vocab_size}. Use the tokenizer that the checkpoint was trained with."
            )
        return cls(encoder.eval().requires_grad_(False), tokenizer, source=str(model), revision=commit)

    def with_lengths(self, *, query: int | None = None, doc: int | None = None) -> Checkpoint:
        """The same weights with other lengths, in tokens; None keeps the checkpoint's.

        Raises:
            ValueError: Longer than the encoder has positions.
        """
        if query is None and doc is None:
            return self
        old = self.tokenizer.lengths
        lengths = replace(old, query=query or old.query, doc=doc or old.doc)
        return Checkpoint(self.encoder, self.tokenizer.with_lengths(lengths), self.source, self.revision)

    def save(self, folder: str | os.PathLike[str], *, model_card: str | None = None) -> Path:
        """Writes the checkpoint so that this package, Lightning IR (0.0.6) and the hub can open it.

        Linear heads are written in Lightning IR's format, classification heads, which that format cannot hold, as
        ``ElectraForSequenceClassification``. The folder appears whole or not at all.

        Args:
            folder: Where to; must not exist, be empty, or hold a checkpoint, which is replaced.
            model_card: Text of ``README.md``; default: a card that says where the weights came from.

        Returns:
            The folder.

        Raises:
            FileExistsError: The folder holds something that is no checkpoint.
        """
        target = Path(folder).expanduser().absolute()
        if target.exists() and not (
            target.is_dir() and (not any(target.iterdir()) or (target / "config.json").exists())
        ):
            raise FileExistsError(f"{target} exists and is no checkpoint folder. Choose another folder, or remove it.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            staged = Path(scratch) / "checkpoint"
            staged.mkdir()
            self._write(staged, model_card or self._model_card())
            if target.exists():
                target.rename(Path(scratch) / "replaced")
            staged.rename(target)
        return target

    def _write(self, folder: Path, model_card: str) -> None:
        _write_json(folder / "config.json", self._config())
        prefix = "" if self.encoder.head_kind == "linear" else "electra."
        state = {
            name if name.startswith(("linear.", "classifier.")) else prefix + name: tensor.contiguous()
            for name, tensor in self.encoder.state_dict().items()
        }
        weights = folder / "model.safetensors"
        save_file(state, weights, metadata={"format": "pt"})
        weights.chmod((folder / "config.json").stat().st_mode)  # safetensors makes files that only the owner reads
        _write_json(folder / "tokenizer_config.json", self._tokenizer_config())
        self.tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
        vocab = self.tokenizer.tokenizer.get_vocab(with_added_tokens=False)
        (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in sorted(vocab, key=vocab.__getitem__)), "utf-8")
        special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
        _write_json(folder / "special_tokens_map.json", special)
        (folder / "README.md").write_text(model_card, encoding="utf-8")

    def _config(self) -> dict[str, Any]:
        lengths = self.tokenizer.lengths
        config: dict[str, Any] = {**asdict(self.encoder.config), "position_embedding_type": "absolute"}
        if self.encoder.head_kind == "classification":
            labels = range(self.encoder.outputs)
            config |= {
                "architectures": ["ElectraForSequenceClassification"],
                "model_type": "electra",
                "id2label": {str(i): f"LABEL_{i}" for i in labels},
                "label2id": {f"LABEL_{i}": i for i in labels},
            }
        else:
            config |= {
                "architectures": ["MonoElectraModel"],
                "model_type": "mono",
                "backbone_model_type": "electra",
                "pooling_strategy": "first",
                "scoring_strategy": "rank" if self.encoder.outputs == 1 else "mono",
                "linear_bias": self.encoder.linear.bias is not None,
                "tokenizer_pattern": None,
            }
        return config | {"query_length": lengths.query, "doc_length": lengths.doc, "dtype": "float32"}

    def _tokenizer_config(self) -> dict[str, Any]:
        lengths = self.tokenizer.lengths
        classification = self.encoder.head_kind == "classification"
        return {
            **self.tokenizer.config,
            "backbone_tokenizer_class": "ElectraTokenizerFast",
            "tokenizer_class": "ElectraTokenizer" if classification else "CrossEncoderTokenizer",
            "model_max_length": lengths.pair,
            "query_length": lengths.query,
            "doc_length": lengths.doc,
        }

    def _model_card(self) -> str:
        lengths = self.tokenizer.lengths
        return (
            "---\nlibrary_name: pyterrier-rankdistillm\npipeline_tag: text-ranking\ntags:\n- cross-encoder\n"
            "- monoelectra\n---\n\n# A monoELECTRA passage re-ranker\n\n"
            f"Weights from: {self.source}{f' at revision {self.revision}' if self.revision else ''}.\n\n"
            f"Input: query (cut to {lengths.query} tokens) and passage (cut to {lengths.doc} tokens). Output: one raw "
            "logit, higher is more relevant; compare logits of one query only.\n\n"
            "```python\nfrom pyterrier_rankdistillm import MonoElectra\n\n"
            'pipeline = first_stage >> MonoElectra("this/folder")\n```\n\n'
            "Format: Lightning IR. Method: Rank-DistiLLM (Schlatt et al., ECIR 2025, "
            "https://arxiv.org/abs/2405.07920).\n"
        )


def locate(
    model: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> tuple[Path, str | None]:
    """The folder of a checkpoint, fetched from the hub where needed, and its commit there.

    Raises:
        CheckpointError: No such folder, or the hub cannot give it.
    """
    if model == DEMO:
        return Path(str(resources.files("pyterrier_rankdistillm") / "demo" / "checkpoint")), None
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"revision={revision!r} was given, but {model} is a folder. Drop the revision.")
        return folder, None
    if looks_like_path(model):
        raise CheckpointError(f"{model} is no folder. Give a checkpoint's folder, a hub id or {DEMO!r}.")
    return _download(str(model), revision, local_files_only)


def looks_like_path(model: str | os.PathLike[str]) -> bool:
    """Whether a name can only mean a folder: it is no hub id (``name`` or ``owner/name``)."""
    return not isinstance(model, str) or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) is None or model.startswith(".")


def _download(repo: str, revision: str | None, local_files_only: bool) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download

    def fetch(*weights: str) -> Path:
        patterns = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", *weights]
        return Path(
            snapshot_download(repo, revision=revision, local_files_only=local_files_only, allow_patterns=patterns)
        )

    try:
        folder = fetch("model*.safetensors", "model.safetensors.index.json")
        if not any(folder.glob("model*.safetensors")):
            folder = fetch("pytorch_model.bin")
    except Exception as error:  # the hub client raises many unrelated types: HTTP, offline, not found, bad name
        where = "the hub's local cache (local_files_only)" if local_files_only else "the Hugging Face hub"
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{repo!r} is no folder here, and {where} did not give it{at}: {type(error).__name__}: {error}. "
            f"Check the name and the connection, log in with `hf auth login` for private models, or give a folder."
        ) from error
    return folder, folder.name


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no checkpoint: config.json is missing.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got {type(config).__name__}.")
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index, single, pickled = (
        folder / name for name in ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
    )
    try:
        if index.is_file():
            weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = {name: load_file(_inside(folder, name)) for name in sorted(set(weight_map.values()))}
            missing = [name for name, shard in weight_map.items() if name not in shards[shard]]
            if missing:
                raise CheckpointError(f"{folder}: {_listed(missing)} named in {index.name}, but not in its file.")
            return {name: shards[shard][name] for name, shard in weight_map.items()}
        if single.is_file():
            return load_file(single)
        if pickled.is_file():
            state: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
            return state
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"The weights in {folder} cannot be read: {type(error).__name__}: {error}.") from error
    raise CheckpointError(f"{folder} holds no weights: expected model.safetensors (or its shards with an index).")


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(f"{folder}: the weight index names a file outside the folder: {name!r}.")
    return folder / name


def _bare_name(name: str) -> str:
    """Weight names as Lightning IR has them: the backbone's own, without its prefix."""
    return re.sub(r"^(electra|bert)\.", "", name)


def _build_encoder(
    config: Mapping[str, Any], weights: dict[str, Tensor], *, source: str, new_head_seed: int | None
) -> CrossEncoder:
    shape = _encoder_config(config, source, backbone_only=new_head_seed is not None)
    with torch.device("meta"):  # names and shapes only: no memory, no random numbers
        bare = {
            name: tensor.shape for name, tensor in CrossEncoder(shape).state_dict().items() if name != "linear.weight"
        }
    head = {name: tensor for name, tensor in weights.items() if name not in bare}
    if new_head_seed is not None:
        # A pooler belongs to pre-training, any other head to another task: both make way for the new one.
        head = {"linear.weight": _new_head(shape, new_head_seed)}
        weights = {name: tensor for name, tensor in weights.items() if name in bare} | head

    complaints = _complaints(bare, weights)
    if not complaints and not head:
        raise CheckpointError(
            f"{source} is a backbone without a scoring head (no linear.weight or classifier weights): it would rank at "
            f"random. Train it first, or choose a trained checkpoint such as webis/monoelectra-base."
        )
    kind, names = _recognise_head(config, head, shape.hidden_size)
    if kind is None and head:
        strategy = config.get("scoring_strategy", "rank")
        complaints.append(
            f"no head that this re-ranker knows (scoring_strategy {strategy!r}), unexpected: "
            + _listed(f"{name} {list(tensor.shape)}" for name, tensor in head.items())
        )
    if complaints:
        raise CheckpointError(f"{source} does not fit its config.json; {'; '.join(complaints)}.")

    weights = {names.get(name, name): tensor.float() for name, tensor in weights.items()}
    outputs = weights["linear.weight" if kind == "linear" else "classifier.out_proj.weight"].shape[0]
    with torch.device("meta"):
        encoder = CrossEncoder(shape, kind, outputs, head_bias="linear.bias" in weights)
    # The file's own tensors become the parameters: no second copy of the weights.
    encoder.load_state_dict(weights, assign=True)
    return encoder


def _encoder_config(config: Mapping[str, Any], source: str, *, backbone_only: bool) -> EncoderConfig:
    model_type = config.get("model_type")
    backbone = config.get("backbone_model_type") if model_type in _LIGHTNING_IR else model_type
    architectures = config.get("architectures") or []
    is_electra = backbone == "electra" or any("Electra" in str(name) for name in architectures)
    if not is_electra and not (backbone_only and backbone == "bert"):
        raise CheckpointError(
            f"{source} is no ELECTRA checkpoint: model_type is {model_type!r}, its backbone {backbone!r}. "
            f"This re-ranker opens monoELECTRA checkpoints (Lightning IR, Sentence Transformers, transformers)."
        )
    # BERT's encoder is ELECTRA's with embeddings of the hidden size; its config.json has no word for that.
    config = {"embedding_size": config.get("hidden_size"), **config} if backbone == "bert" else config
    missing = [key for key in _REQUIRED if not isinstance(config.get(key), int)]
    if model_type in _LIGHTNING_IR:  # null is allowed there: nothing is cut
        missing += [key for key in ("query_length", "doc_length") if key not in config]
    if missing:
        raise CheckpointError(f"{source}: config.json lacks {', '.join(missing)} (whole numbers).")
    for key, allowed in (
        ("position_embedding_type", ("absolute",)),
        ("pooling_strategy", ("first",)),
        ("_bert_pool", (False,)),
        ("use_adapter", (False,)),
        ("tokenizer_pattern", (None,)),
        ("scoring_strategy", ("rank", "mono")),
    ):
        if key in config and config[key] not in allowed:
            raise CheckpointError(
                f"{source}: {key} is {config[key]!r} in config.json; this re-ranker knows "
                f"{' and '.join(map(repr, allowed))}."
            )
    known = {field.name for field in fields(EncoderConfig)}
    try:
        return EncoderConfig(**{key: value for key, value in config.items() if key in known and value is not None})
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _complaints(expected: Mapping[str, torch.Size], weights: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in weights]
    misshapen = [
        f"{name} is {list(weights[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    return [f"{what}: {_listed(names)}" for what, names in (("missing", missing), ("wrong shape", misshapen)) if names]


def _recognise_head(config: Mapping[str, Any], head: Mapping[str, Tensor], hidden: int) -> tuple[Any, dict[str, str]]:
    """The head's kind (None: unknown) and how its tensors are renamed to ours."""
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
    rows = 2 if config.get("scoring_strategy") == "mono" else 1
    if shapes.get("linear.weight") == (rows, hidden) and shapes.get("linear.bias", (rows,)) == (rows,):
        return ("linear" if set(shapes) <= {"linear.weight", "linear.bias"} else None), {}
    if set(shapes) == {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}:
        labels = shapes["classifier.out_proj.bias"][0]
        fits = shapes == {
            "classifier.dense.weight": (hidden, hidden),
            "classifier.dense.bias": (hidden,),
            "classifier.out_proj.weight": (labels, hidden),
            "classifier.out_proj.bias": (labels,),
        }
        return ("classification" if fits and labels in (1, 2) else None), {}
    # A port under another name: one row, perhaps a bias, and nothing else.
    if config.get("model_type") not in _LIGHTNING_IR and sorted(shapes.values(), key=len) in (
        [(1, hidden)],
        [(1,), (1, hidden)],
    ):
        return "linear", {name: "linear.weight" if len(shape) == 2 else "linear.bias" for name, shape in shapes.items()}
    return None, {}


def _new_head(config: EncoderConfig, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(1, config.hidden_size).normal_(0.0, config.initializer_range, generator=generator)


def _lengths(config: Mapping[str, Any], positions: int) -> Lengths:
    return Lengths(query=config.get("query_length"), doc=config.get("doc_length"), pair=positions)


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
