"""Opening and saving cross-encoder checkpoints. Code that comes with a checkpoint is never run."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks import is_whole
from ..errors import CheckpointError
from ..notebook import card as shown
from ..scratch import replacing_folder
from . import writing
from .card import card, public_name
from .encoder import CrossEncoder, PairEncoder
from .folders import RECORD, SentenceTransformer, locate, read_config, read_record, read_weights
from .formats import build_encoder, lengths_of
from .sets import BACKBONES, Interaction, SetEncoder
from .tokenizer import PairTokenizer

Format = Literal["lightning-ir", "transformers"]


@dataclass(eq=False, repr=False)
class Checkpoint:
    """An open checkpoint: a cross-encoder with its tokenizer.

    Args:
        encoder: The weights, float32, in evaluation mode.
        tokenizer: The tokenizer, with the checkpoint's own lengths.
        source: Where it came from: a hub id, a folder, or a description of how it was made.
        revision: The commit on the hub, if it came from there.
        record: How it was trained, as JSON values, if this package trained it: ``record.json`` beside the weights.
    """

    encoder: PairEncoder
    tokenizer: PairTokenizer
    source: str
    revision: str | None = None
    record: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}" + (f", revision={self.revision!r})" if self.revision else ")")

    def _repr_html_(self) -> str:
        lengths, encoder = self.tokenizer.lengths, self.encoder
        trained = (self.record or {}).get("training") or {}
        validation = trained.get("validation") or {}
        kept = validation.get("kept")
        shape = [
            f"{value:,} {called}"
            for name, called in (
                ("num_hidden_layers", "layers"),
                ("hidden_size", "wide"),
                ("num_attention_heads", "heads"),
            )
            if isinstance(value := getattr(encoder.config, name, None), int)
        ]
        rows = [
            ("from", self.source),
            ("revision", self.revision),
            ("model", ", ".join([str(getattr(encoder.config, "model_type", type(encoder).__name__)), *shape])),
            ("parameters", f"{sum(p.numel() for p in encoder.parameters()):,}"),
            ("head", "drawn at random: train it first" if encoder.has_new_head else encoder.head_kind),
            ("reads", f"query {_tokens(lengths.query)}, text {_tokens(lengths.doc)}, pair {_tokens(lengths.pair)}"),
            ("trained with", f"{trained['loss']}, {trained['steps']:,} steps" if trained else None),
            ("teacher", (self.record or {}).get("data", {}).get("teacher") if trained else None),
            (str(validation.get("measure")), None if kept is None else f"{kept:.4f} on the validation topics"),
        ]
        return shown("Set encoder" if encoder.sees_lists else "Cross-encoder", rows)

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        new_head_seed: int | None = None,
        drop_head: bool = False,
    ) -> Checkpoint:
        """Opens a checkpoint folder, a Hugging Face hub id, or ``"rankdistillm:demo"``.

        Reads Lightning IR's formats (``mono`` and ``set-encoder``), ports of it with other names for the head,
        ``...ForSequenceClassification`` with one or two labels, and Sentence Transformers' cross-encoders (plain, or
        Transformer, Pooling and Dense), each in one or several safetensors files. ``pytorch_model.bin`` is read only
        where there is no safetensors file, and then without unpickling objects. A checkpoint that is open somewhere in
        this process shares its weights.

        Args:
            model: Folder, hub id, or ``"rankdistillm:demo"``.
            revision: Branch, tag or commit on the hub; default: its main branch.
            local_files_only: Use the hub's local cache only.
            new_head_seed: For training: a backbone without a head gets a new one, drawn from this seed. None, for
                re-ranking: a missing head is an error.
            drop_head: With ``new_head_seed``: a trained head that cannot make a re-ranker's score (as one with three
                labels) makes way for a new one, which a warning says. Otherwise it is an error.

        Raises:
            CheckpointError: The checkpoint cannot be found, read, or used for re-ranking.
            ValueError: ``drop_head`` without ``new_head_seed``.
        """
        if drop_head and new_head_seed is None:
            raise ValueError("Checkpoint.open: drop_head needs new_head_seed, got None. Give the new head's seed.")
        folder, commit = locate(model, revision=revision, local_files_only=local_files_only)
        modules = SentenceTransformer.read(folder)
        folder = folder if modules is None else modules.transformer
        config = read_config(folder)
        encoder = build_encoder(
            config,
            read_weights(folder),
            source=str(model),
            modules=modules,
            new_head_seed=new_head_seed,
            drop_head=drop_head,
        )
        try:
            lengths = lengths_of(config, encoder.positions, [])
            extra = isinstance(encoder, SetEncoder) and encoder.interaction.extra_token
            tokenizer = PairTokenizer.from_folder(folder, lengths, rows=encoder.vocab_size, interaction=extra)
            stated = [tokenizer.config.get("model_max_length"), None if modules is None else modules.longest]
            tokenizer = tokenizer.with_lengths(lengths_of(config, encoder.positions, stated))
        except (ValueError, FileNotFoundError) as error:
            raise CheckpointError(f"{model}: {error}") from error
        _check_tables(encoder, tokenizer, str(model))
        encoder.eval().requires_grad_(False)
        return cls(_shared(encoder), tokenizer, source=str(model), revision=commit, record=read_record(folder))

    def with_lengths(self, *, query: int | None = None, doc: int | None = None) -> Checkpoint:
        """The same weights with other lengths, in tokens; None keeps the checkpoint's.

        Raises:
            ValueError: A length exceeds the encoder's number of positions.
        """
        if query is None and doc is None:
            return self
        old = self.tokenizer.lengths
        lengths = replace(old, query=query or old.query, doc=doc or old.doc)
        return replace(self, tokenizer=self.tokenizer.with_lengths(lengths))

    def as_set_encoder(self, *, depth: int = 100, extra_token_seed: int | None = None) -> Checkpoint:
        """The same weights as a Set-Encoder, to start a training from.

        It has to be trained to rank well: nothing in it has learnt to attend to other passages yet.

        Args:
            depth: Passages of a list that it is trained with, at most; for longer ones the re-ranker warns.
            extra_token_seed: Gives pairs a token of its own, [INT], whose vector the other passages see; its embedding
                is drawn from this seed. None: they see [CLS]'s.

        Raises:
            ValueError: A setting is out of range, or there is no set encoder of such an encoder: it has to be ELECTRA
                or BERT, with a linear head (or with BERT's own).
        """
        if not is_whole(depth, least=1):
            raise ValueError(f"Checkpoint.as_set_encoder: depth must be a whole number, at least 1, got {depth!r}.")
        encoder = self.encoder
        plain = isinstance(encoder, CrossEncoder) and not encoder.sees_lists and writing.fits_lightning_ir(encoder)
        if not isinstance(encoder, CrossEncoder) or not plain or encoder.config.model_type not in BACKBONES:
            raise ValueError(
                f"Checkpoint.as_set_encoder: the checkpoint must be an ELECTRA or BERT that scores passages one by "
                f"one, with a linear head or BERT's own, got {self!r} ({encoder.config.model_type}, "
                f"{encoder.head_kind} head). Open a backbone with new_head_seed, or drop_head."
            )
        interaction = Interaction(int(depth), extra_token=extra_token_seed is not None)
        if extra_token_seed is None:
            return replace(self, encoder=SetEncoder.of(encoder, interaction))
        tokenizer = self.tokenizer.with_interaction()
        token = tokenizer.template.before[interaction.position]
        made = SetEncoder.of(encoder, interaction, token=token, seed=extra_token_seed)
        return replace(self, encoder=made, tokenizer=tokenizer)

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        format: Format | None = None,  # noqa: A002
        model_card: str | None = None,
    ) -> Path:
        """Writes the checkpoint, so that this package and others can open it.

        At any moment the folder is the old one or the new one, complete.

        Args:
            folder: Where to; must not exist, be empty, or hold a checkpoint, which is replaced.
            format: ``"lightning-ir"``, for Lightning IR (0.0.6), the only one that holds set encoders;
                ``"transformers"``, for transformers and Sentence Transformers with equal scores:
                ``...ForSequenceClassification`` where the head can be written so, else
                Sentence Transformers' modules. It cuts pairs at one length, the sum of the two where there are two: a
                pair of which one side is longer than its length scores otherwise there. Default: Lightning IR's for
                linear heads, transformers' for others.
            model_card: Text of ``README.md``; default: a card that says where the weights came from.

        Returns:
            The folder.

        Raises:
            FileExistsError: The folder holds something that is not a checkpoint.
            ValueError: A format that is not known, or that cannot hold this model.
        """
        if format is None:
            format = "lightning-ir" if writing.is_lightning_ir_own(self.encoder) else "transformers"  # noqa: A001
        if format not in get_args(Format):
            raise ValueError(
                f"Checkpoint.save: format must be None or one of {', '.join(get_args(Format))}, got {format!r}."
            )
        write = {"lightning-ir": writing.lightning_ir, "transformers": writing.transformers}[format]
        target = Path(folder).expanduser().absolute()
        if target.exists() and not (
            target.is_dir() and (not any(target.iterdir()) or (target / "config.json").exists())
        ):
            raise FileExistsError(
                f"{target} exists and is not a checkpoint folder. Choose another folder, or remove it."
            )
        with replacing_folder(target) as new:
            write(new, self.encoder, self.tokenizer)
            (new / "README.md").write_text(model_card or self._model_card(format), encoding="utf-8")
            if self.record is not None:
                text = json.dumps(dict(self.record), indent=1, ensure_ascii=False) + "\n"
                (new / RECORD).write_text(text, encoding="utf-8")
        return target

    def _model_card(self, format: Format) -> str:  # noqa: A002
        lengths = self.tokenizer.lengths

        def cut(length: int | None) -> str:
            return f"cut to {length} tokens" if length else f"cut so that the pair fits {lengths.pair} tokens"

        elsewhere = ""
        if format == "transformers" and (lengths.query or lengths.doc):
            elsewhere = (
                "transformers and Sentence Transformers cut the pair at "
                f"{writing.pair_length(lengths)} tokens instead, so that their scores are equal where neither the "
                "query nor the passage is longer than that.\n"
            )
        electra = self.encoder.config.model_type == "electra"
        kind = "set-encoder" if self.encoder.sees_lists else "monoelectra" if electra else "cross-encoder"
        return card(
            kind,
            source=public_name(self.source) + (f" at revision {self.revision}" if self.revision else ""),
            lengths=f"Input: query ({cut(lengths.query)}) and passage ({cut(lengths.doc)}). Output: one raw logit, "
            "higher is more relevant; compare logits of one query only.",
            notes=elsewhere,
            format="Lightning IR" if format == "lightning-ir" else "transformers",
            record=self.record,
        )


def _tokens(length: int | None) -> str:
    return "whole" if length is None else f"{length} tokens"


def _check_tables(encoder: PairEncoder, tokenizer: PairTokenizer, source: str) -> None:
    """Whether pairs have room for text, and all their ids and types a row in the encoder's tables."""
    lengths = tokenizer.lengths
    if lengths.room < 1:
        raise CheckpointError(
            f"{source}: a pair must have room for more than its {lengths.special_tokens} special tokens, got "
            f"{lengths.pair} tokens (of the encoder's positions, or model_max_length in tokenizer_config.json)."
        )
    tokens = tokenizer.largest_id + 1
    if tokens > encoder.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has {tokens} tokens, the encoder embeds only {encoder.vocab_size}. Use the "
            f"tokenizer that the checkpoint was trained with."
        )
    types = max(tokenizer.template.types) + 1
    if encoder.token_types is not None and types > encoder.token_types:
        raise CheckpointError(
            f"{source}: the tokenizer gives {types} token types, the encoder embeds only {encoder.token_types}. Use "
            f"the tokenizer that the checkpoint was trained with."
        )


_OPEN: weakref.WeakSet[PairEncoder] = weakref.WeakSet()
"""Encoders that were opened and are in use."""


def _shared(encoder: PairEncoder) -> PairEncoder:
    """An open encoder with the same weights, else this one.

    Compared by content: a folder that was saved over is another model, a copy of one is the same.
    """
    for other in list(_OPEN):
        if other is not encoder and _equal(encoder, other):
            return other
    _OPEN.add(encoder)
    return encoder


def _equal(one: PairEncoder, other: PairEncoder) -> bool:
    if one.signature != other.signature or other.training or any(p.requires_grad for p in other.parameters()):
        return False
    ours, theirs = one.state_dict(), other.state_dict()
    # The smallest first: a head tells trained encoders apart.
    names = sorted(ours, key=lambda name: ours[name].numel())
    return ours.keys() == theirs.keys() and all(_same(ours[name], theirs[name]) for name in names)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
