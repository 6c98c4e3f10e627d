"""(query, passage) pairs to token ids, cut as Lightning IR or as transformers cuts them.

Built on the ``tokenizers`` library directly: the published ``tokenizer_config.json`` names classes that
``transformers`` does not know, while ``tokenizer.json`` says all that is needed. What stands around and between the
two texts of a pair is asked of the tokenizer's own post-processor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from ..checks import is_whole

_LONG = 20_000
"""Characters from which on only the beginning of a text is tokenised, since the rest of it would be cut anyway."""


@dataclass(frozen=True)
class Lengths:
    """How many tokens of a pair are kept. Special tokens are counted in ``pair`` only.

    Args:
        query: Tokens kept of the query; None keeps all.
        doc: Tokens kept of the passage; None keeps all.
        pair: Tokens of a whole pair with its special tokens, at most the encoder's number of positions. A pair
            that is longer after the two cuts loses tokens from its longer side first, as ``transformers``'
            ``longest_first`` does; checkpoints that state ``query`` and ``doc`` never come to that.
        special_tokens: How many special tokens a pair has: 3 in [CLS] query [SEP] passage [SEP].
    """

    query: int | None
    doc: int | None
    pair: int
    special_tokens: int = 3

    def __post_init__(self) -> None:
        for name, value in (("query_length", self.query), ("doc_length", self.doc)):
            if value is not None and not is_whole(value, least=1):
                raise ValueError(f"{name} must be None or a whole number of tokens, at least 1, got {value!r}.")
        if self.query is not None and self.doc is not None and self.query + self.doc > self.room:
            raise ValueError(
                f"query_length + doc_length must be at most {self.room} tokens (the encoder has {self.pair} positions, "
                f"{self.special_tokens} go to special tokens), got {self.query} + {self.doc}. "
                f"Lower one of them, or split long documents with "
                f"pt.text.sliding(text_attr='text', prepend_attr=None)."
            )

    @property
    def room(self) -> int:
        """Tokens of query and passage together."""
        return self.pair - self.special_tokens

    def cut_pair(self, query_tokens: int, doc_tokens: int) -> tuple[int, int]:
        """Tokens kept of a query and a passage of the given lengths (after their own cuts)."""
        room = self.room
        if query_tokens + doc_tokens <= room:
            return query_tokens, doc_tokens
        shorter = min(query_tokens, doc_tokens)
        if 2 * shorter <= room:  # cutting the longer side is enough
            longer = room - shorter
            return (shorter, longer) if query_tokens <= doc_tokens else (longer, shorter)
        half = room // 2  # both end up equally long; an odd token goes to the side that was longer
        return (half, room - half) if query_tokens <= doc_tokens else (room - half, half)


class Tokens(NamedTuple):
    """Token ids of one text, and whether the text was longer."""

    ids: list[int]
    cut: bool


class Pair(NamedTuple):
    """One encoder input.

    Args:
        ids: Its token ids.
        first_segment: How many of them stand before the passage.
        query_cut: Whether the query was cut.
        doc_cut: Whether the passage was cut.
    """

    ids: list[int]
    first_segment: int
    query_cut: bool
    doc_cut: bool


class Template(NamedTuple):
    """What stands around and between a query and a passage, and the token types of all five parts.

    Types are one list for what is before the passage's end: (before, query, between, passage, after); special tokens
    next to a text may have other types than it has, so each part that is special has a type per token.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    before_types: list[int]
    query_type: int
    between_types: list[int]
    doc_type: int
    after_types: list[int]

    @property
    def special_tokens(self) -> int:
        """How many there are."""
        return len(self.before) + len(self.between) + len(self.after)

    @property
    def ids(self) -> list[int]:
        """Of all special tokens."""
        return [*self.before, *self.between, *self.after]

    @property
    def types(self) -> list[int]:
        """All token types."""
        return [*self.before_types, self.query_type, *self.between_types, self.doc_type, *self.after_types]

    @property
    def segments(self) -> bool:
        """Whether types are BERT's: 0 before the passage, 1 from its first token on."""
        first = len(self.before) + 1 + len(self.between)
        return not any(self.types[:first]) and set(self.types[first:]) == {1}

    def spread_types(self, first_segment: int, size: int) -> list[int]:
        """The types of a pair of ``size`` tokens, of which ``first_segment`` stand before the passage."""
        query = first_segment - len(self.before) - len(self.between)
        return [
            *self.before_types,
            *([self.query_type] * query),
            *self.between_types,
            *([self.doc_type] * (size - first_segment - len(self.after))),
            *self.after_types,
        ]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Template:
        """Asks a tokenizer's post-processor.

        Raises:
            ValueError: There is none and the tokenizer has not BERT's special tokens, or it does not put the query
                before the passage.
        """
        if tokenizer.post_processor is None:
            cls_id, sep_id = (_token_id(tokenizer, token) for token in ("[CLS]", "[SEP]"))
            return cls([cls_id], [sep_id], [sep_id], [0], 0, [0], 1, [1])
        text, ids = _some_text(tokenizer)
        joined = tokenizer.encode(text, text)
        parts = [0 if sequence is None else sequence + 1 for sequence in joined.sequence_ids]
        at_query, at_doc = (np.flatnonzero(np.equal(parts, part)) for part in (1, 2))
        texts = [token for token, part in zip(joined.ids, parts, strict=True) if part]
        if texts != [*ids, *ids] or at_query[-1] > at_doc[0]:
            raise ValueError("its post-processor does not put the query before the passage, each of them once")
        ends = int(at_query[0]), int(at_query[-1]) + 1, int(at_doc[0]), int(at_doc[-1]) + 1

        def cut(values: list[int]) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
            first, second, third, fourth = ends
            return values[:first], values[first:second], values[second:third], values[third:fourth], values[fourth:]

        before, _, between, _, after = cut(joined.ids)
        before_types, query_types, between_types, doc_types, after_types = cut(joined.type_ids)
        return cls(before, between, after, before_types, query_types[0], between_types, doc_types[0], after_types)


def _some_text(tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """A text of at least one token, and its tokens without special ones."""
    for text in ("a", "the", "0", ".", "A", "?"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if ids:
            return text, ids
    raise ValueError("it has no token for letters, digits and stops")


class PairTokenizer:
    """Tokenises queries and passages separately (each distinct text once) and joins them into pairs.

    Args:
        tokenizer: With a post-processor for pairs, or with [CLS], [SEP] and [PAD].
        lengths: What is kept of a pair.
        config: The checkpoint's ``tokenizer_config.json``, kept to be saved again.

    Raises:
        ValueError: What stands around the texts of a pair is not known, or the lengths count other special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, lengths: Lengths, config: dict[str, Any] | None = None) -> None:
        # The file may carry settings of its own; all cutting and padding is done here.
        padding = tokenizer.padding
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.config = dict(config or {})
        self.template = Template.of(tokenizer)
        if "token_type_ids" not in self.config.get("model_input_names", ["token_type_ids"]):
            t = self.template
            zeros = [[0] * len(part) for part in (t.before, t.between, t.after)]
            self.template = Template(*t[:3], zeros[0], 0, zeros[1], 0, zeros[2])
        self.pad_id = _pad_id(tokenizer, self.config, padding)
        self.lengths = replace(lengths, special_tokens=self.template.special_tokens)

    @classmethod
    def from_folder(
        cls, folder: Path, lengths: Lengths, *, rows: int | None = None, interaction: bool = False
    ) -> PairTokenizer:
        """Reads ``tokenizer.json``, or ``vocab.txt`` where there is none.

        Args:
            folder: The checkpoint's.
            lengths: What is kept of a pair.
            rows: Of the encoder's table of tokens; a ``vocab.txt`` of another number of lines has been cut.
            interaction: Whether pairs begin with [CLS] [INT], as those of a set encoder with an extra token.

        Raises:
            FileNotFoundError: Neither file exists.
            ValueError: A file cannot be read; the message names it.
        """
        config: Any = {}
        file = folder / "tokenizer_config.json"
        try:
            if file.is_file():
                config = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(config, dict):
                    raise ValueError(f"it must hold a JSON object, got {type(config).__name__}")
                if config.get("truncation_side", "right") != "right":
                    raise ValueError(f"truncation_side must be 'right', got {config['truncation_side']!r}")
            if (file := folder / "tokenizer.json").is_file():
                tokenizer = _from_json(file)
            elif (file := folder / "vocab.txt").is_file():
                tokenizer = _wordpiece(file, None if rows is None else rows - interaction)
            else:
                raise FileNotFoundError(
                    f"no tokenizer in {folder}: expected tokenizer.json or vocab.txt. Copy it from the checkpoint's "
                    f"origin."
                )
            _apply_config(tokenizer, config)
            if interaction:
                _begin_with_interaction(tokenizer)
            return cls(tokenizer, lengths, config)
        except FileNotFoundError:
            raise
        except Exception as error:  # the tokenizers library raises plain Exceptions
            raise ValueError(f"{file} cannot be read: {error}.") from error

    def with_lengths(self, lengths: Lengths) -> PairTokenizer:
        """The same tokenizer with other lengths."""
        return PairTokenizer(self.tokenizer, lengths, self.config)

    def with_interaction(self) -> PairTokenizer:
        """A tokenizer whose pairs begin with [CLS] [INT].

        Raises:
            ValueError: It has not BERT's special tokens, or there is no room for one more.
        """
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        _begin_with_interaction(tokenizer)
        return PairTokenizer(tokenizer, self.lengths, {**self.config, "add_extra_token": True})

    @property
    def largest_id(self) -> int:
        """The largest id that a text or a pair can have."""
        return max([*self.tokenizer.get_vocab().values(), *self.template.ids, self.pad_id])

    def encode_queries(self, queries: Sequence[str]) -> list[Tokens]:
        """Token ids of queries, truncated to the query length, without special tokens."""
        return self._encode(queries, self.lengths.query)

    def encode_docs(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of passages, truncated to the passage length, without special tokens."""
        return self._encode(texts, self.lengths.doc)

    def _encode(self, texts: Sequence[str], length: int | None) -> list[Tokens]:
        # What is read of a text must be well inside its head, so that the cut changes nothing.
        enough = (self.lengths.pair if length is None else length) + _MARGIN
        heads = [_head(text, 8 * enough) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(heads, add_special_tokens=False)
        for row, (head, text, encoding) in enumerate(zip(heads, texts, encodings, strict=True)):
            if len(head) < len(text) and len(encoding) < enough:
                encodings[row] = self.tokenizer.encode(text, add_special_tokens=False)
        return [Tokens(e.ids[:length], cut=length is not None and len(e) > length) for e in encodings]

    def join(self, query: Tokens, doc: Tokens) -> Pair:
        """Such as [CLS] query [SEP] passage [SEP]."""
        query_tokens, doc_tokens = self.lengths.cut_pair(len(query.ids), len(doc.ids))
        before, between, after = self.template[:3]
        return Pair(
            ids=[*before, *query.ids[:query_tokens], *between, *doc.ids[:doc_tokens], *after],
            first_segment=len(before) + query_tokens + len(between),
            query_cut=query.cut or query_tokens < len(query.ids),
            doc_cut=doc.cut or doc_tokens < len(doc.ids),
        )

    def pad(
        self, pairs: Sequence[Pair], width: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """A batch, padded to its longest pair, or to ``width`` tokens, which is at least as much.

        Returns:
            Token ids, token types and mask, each of shape (pairs, tokens).
        """
        width = width or max(len(pair.ids) for pair in pairs)
        ids = np.full((len(pairs), width), self.pad_id, dtype=np.int64)
        types = np.zeros_like(ids)
        mask = np.zeros(ids.shape, dtype=bool)
        template, segments = self.template, self.template.segments
        for row, pair in enumerate(pairs):
            size = len(pair.ids)
            ids[row, :size] = pair.ids
            mask[row, :size] = True
            if segments:
                types[row, pair.first_segment : size] = 1
            else:
                types[row, :size] = template.spread_types(pair.first_segment, size)
        return ids, types, mask


_MARGIN = 32
"""Tokens before the end of a text's head that are not trusted: what follows might have changed them."""


def _head(text: str, characters: int) -> str:
    """The beginning of a long text, up to a space."""
    longest = max(_LONG, characters)
    if len(text) <= longest:
        return text
    end = max(text.rfind(space, 0, longest) for space in " \n\t")
    return text[:end] if end > longest // 2 else text


def _from_json(file: Path) -> Tokenizer:
    text = file.read_text(encoding="utf-8")
    content = json.loads(text)
    # The tokenizers library makes room for all ids up to the largest one.
    vocab = content["model"]["vocab"]
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [token["id"] for token in content.get("added_tokens") or []]
    wild = [i for i in ids if not isinstance(i, int) or not 0 <= i < _MOST_TOKENS]
    if wild:
        raise ValueError(f"token ids must be whole numbers from 0 to {_MOST_TOKENS - 1:,}, got {wild[0]!r}")
    return Tokenizer.from_str(text)


_MOST_TOKENS = 2**24


def _wordpiece(vocab: Path, rows: int | None) -> Tokenizer:
    """BERT's uncased tokenizer with the tokens of ``vocab.txt``, one a line."""
    # Not splitlines: some vocabularies have tokens that Unicode takes for the end of a line.
    lines = [line.removesuffix("\r") for line in vocab.read_bytes().decode("utf-8").split("\n")]
    tokens = lines[:-1] if lines[-1] == "" else lines
    ids = {token: i for i, token in enumerate(tokens)}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if token not in ids]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    # Tables are padded to a multiple of 8 (to 128 at most) for speed.
    if rows is not None and len(tokens) < rows and (rows % 8 or rows - len(tokens) >= 128):
        raise ValueError(f"it has {len(tokens)} tokens, the encoder embeds {rows}. Copy it from its origin again")
    return Tokenizer.from_str(BertWordPieceTokenizer(ids).to_str())


def _pad_id(tokenizer: Tokenizer, config: dict[str, Any], padding: dict[str, Any] | None) -> int:
    named = config.get("pad_token")
    named = named.get("content") if isinstance(named, dict) else named
    for token in (named, (padding or {}).get("pad_token"), "[PAD]", "<pad>"):
        token_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if token_id is not None:
            return int(token_id)
    return _token_id(tokenizer, "[PAD]")


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"The tokenizer has no {token} token; a BERT-style WordPiece tokenizer is needed.")
    return int(token_id)


INTERACTION = "[INT]"
"""The extra token of set encoders."""


def _begin_with_interaction(tokenizer: Tokenizer) -> None:
    """Puts the extra token after [CLS], as Lightning IR does whatever ``tokenizer.json`` says."""
    tokenizer.add_special_tokens([INTERACTION])
    special = [(token, _token_id(tokenizer, token)) for token in ("[CLS]", "[SEP]", INTERACTION)]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $0 [SEP]", pair=f"[CLS] {INTERACTION} $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )


def _apply_config(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Lets ``tokenizer_config.json`` overrule normaliser and pre-tokeniser, as ``transformers`` does."""
    space = config.get("add_prefix_space")
    if isinstance(tokenizer.pre_tokenizer, ByteLevel) and isinstance(space, bool):
        tokenizer.pre_tokenizer.add_prefix_space = space
    state = json.loads(tokenizer.to_str()).get("normalizer") or {}
    if state.pop("type", None) != "BertNormalizer":
        return
    stated = {
        ours: config[theirs]
        for ours, theirs in (
            ("lowercase", "do_lower_case"),
            ("strip_accents", "strip_accents"),
            ("handle_chinese_chars", "tokenize_chinese_chars"),
        )
        if theirs in config
    }
    if any(state.get(key) != value for key, value in stated.items()):
        tokenizer.normalizer = BertNormalizer(**{**state, **stated})
