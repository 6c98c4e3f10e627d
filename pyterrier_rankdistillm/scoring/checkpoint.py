"""Opening and saving cross-encoder checkpoints. Code that comes with a checkpoint is never run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..errors import CheckpointError
from ..scratch import replacing_folder
from .encoder import CrossEncoder
from .folders import locate, read_config, read_weights
from .formats import build_encoder, lengths_of
from .tokenizer import PairTokenizer


@dataclass(eq=False, repr=False)
class Checkpoint:
    """An open checkpoint: a cross-encoder with its tokenizer.

    Args:
        encoder: The weights, float32, in evaluation mode.
        tokenizer: The tokenizer, with the checkpoint's own lengths.
        source: Where it came from: a hub id, a folder, or a description of how it was made.
        revision: The commit on the hub, if it came from there.
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

        Reads Lightning IR's format, ports of it with other names for the head, and
        ``ElectraForSequenceClassification`` with one or two labels, each in one or several safetensors files.
        ``pytorch_model.bin`` is read only if there is no safetensors file, and then without unpickling objects.

        Args:
            model: Folder, hub id, or ``"rankdistillm:demo"``.
            revision: Branch, tag or commit on the hub; default: its main branch.
            local_files_only: Use the hub's local cache only.
            new_head_seed: For training: a backbone (ELECTRA, or BERT, whose encoder has the same shape) without a
                head gets a new one, drawn from this seed. None, for re-ranking: a missing head is an error.

        Raises:
            CheckpointError: The checkpoint cannot be found, read, or used for re-ranking.
        """
        folder, commit = locate(model, revision=revision, local_files_only=local_files_only)
        config = read_config(folder)
        encoder = build_encoder(config, read_weights(folder), source=str(model), new_head_seed=new_head_seed)
        try:
            tokenizer = PairTokenizer.from_folder(folder, lengths_of(config, encoder.config.max_position_embeddings))
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
            ValueError: A length exceeds the encoder's number of positions.
        """
        if query is None and doc is None:
            return self
        old = self.tokenizer.lengths
        lengths = replace(old, query=query or old.query, doc=doc or old.doc)
        return Checkpoint(self.encoder, self.tokenizer.with_lengths(lengths), self.source, self.revision)

    def save(self, folder: str | os.PathLike[str], *, model_card: str | None = None) -> Path:
        """Writes the checkpoint so that this package, Lightning IR (0.0.6) and the hub can open it.

        Linear heads are written in Lightning IR's format. Classification heads, which that format cannot hold, are
        written as ``ElectraForSequenceClassification``. At any moment the folder is
        the old one or the new one, complete.

        Args:
            folder: The folder to write. It must not exist, be empty, or hold a checkpoint, which is replaced.
            model_card: Text of ``README.md``; default: a card that says where the weights came from.

        Returns:
            The folder.

        Raises:
            FileExistsError: The folder holds something that is not a checkpoint.
        """
        target = Path(folder).expanduser().absolute()
        if target.exists() and not (
            target.is_dir() and (not any(target.iterdir()) or (target / "config.json").exists())
        ):
            raise FileExistsError(f"{target} exists and is no checkpoint folder. Choose another folder, or remove it.")
        with replacing_folder(target) as new:
            self._write(new, model_card or self._model_card())
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
        weights.chmod((folder / "config.json").stat().st_mode)  # safetensors makes files that only the owner can read
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

        def cut(length: int | None) -> str:
            return f"cut to {length} tokens" if length else f"cut so that the pair fits {lengths.pair} tokens"

        linear = self.encoder.head_kind == "linear"
        return (
            "---\nlibrary_name: pyterrier-rankdistillm\npipeline_tag: text-ranking\ntags:\n- cross-encoder\n"
            "- monoelectra\n---\n\n# A monoELECTRA passage re-ranker\n\n"
            f"Weights from: {self.source}{f' at revision {self.revision}' if self.revision else ''}.\n\n"
            f"Input: query ({cut(lengths.query)}) and passage ({cut(lengths.doc)}). Output: one raw logit, higher is "
            "more relevant; compare logits of one query only.\n\n"
            "```python\nfrom pyterrier_rankdistillm import MonoElectra\n\n"
            'pipeline = first_stage >> MonoElectra("this/folder")\n```\n\n'
            f"Format: {'Lightning IR' if linear else 'transformers, ElectraForSequenceClassification'}. Method: "
            "Rank-DistiLLM (Schlatt et al., ECIR 2025, https://arxiv.org/abs/2405.07920).\n"
        )


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
