"""(query, passage) pairs to token ids, truncated as in Lightning IR.

It uses the ``tokenizers`` library directly: the published ``tokenizer_config.json`` names classes that ``transformers``
does not know, and ``tokenizer.json`` has all that is needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.normalizers import BertNormalizer

from ..checks import is_whole

SPECIAL_TOKENS = 3
"""[CLS] query [SEP] passage [SEP]"""


@dataclass(frozen=True)
class Lengths:
    """How many tokens of a pair are kept. Special tokens are counted in ``pair`` only.

    Args:
        query: Number of tokens kept of the query; None keeps all.
        doc: Number of tokens kept of the passage; None keeps all.
        pair: Number of tokens of a whole pair with its three special tokens, at most the encoder's number of positions.
            A pair that is still longer after the two truncations loses tokens from its longer side first, like
            ``longest_first`` in ``transformers``. This does not happen with checkpoints that state ``query`` and
            ``doc``.
    """

    query: int | None
    doc: int | None
    pair: int

    def __post_init__(self) -> None:
        for name, value in (("query_length", self.query), ("doc_length", self.doc)):
            if value is not None and not is_whole(value, least=1):
                raise ValueError(f"{name} must be None or a whole number of tokens, at least 1, got {value!r}.")
        if self.query is not None and self.doc is not None and self.query + self.doc + SPECIAL_TOKENS > self.pair:
            raise ValueError(
                f"query_length + doc_length must be at most {self.pair - SPECIAL_TOKENS} tokens (the encoder has "
                f"{self.pair} positions, {SPECIAL_TOKENS} go to special tokens), got {self.query} + {self.doc}. "
                f"Lower one of them, or split long documents with "
                f"pt.text.sliding(text_attr='text', prepend_attr=None)."
            )

    def cut_pair(self, query_tokens: int, doc_tokens: int) -> tuple[int, int]:
        """Number of tokens kept of a query and a passage of the given lengths (after their own truncation)."""
        room = self.pair - SPECIAL_TOKENS
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
    """One encoder input: its token ids, how many of them have token type 0, and whether a side was truncated."""

    ids: list[int]
    first_segment: int
    query_cut: bool
    doc_cut: bool


class PairTokenizer:
    """Tokenises queries and passages separately (each distinct text once) and joins them into pairs.

    Args:
        tokenizer: A WordPiece tokenizer with [CLS], [SEP] and [PAD].
        lengths: How many tokens are kept of a pair.
        config: The checkpoint's ``tokenizer_config.json``, kept so that it can be saved again.
    """

    def __init__(self, tokenizer: Tokenizer, lengths: Lengths, config: dict[str, Any] | None = None) -> None:
        # The file may have its own settings; all truncation and padding is done here.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.lengths = lengths
        self.config = dict(config or {})
        self.cls_id, self.sep_id, self.pad_id = (_token_id(tokenizer, t) for t in ("[CLS]", "[SEP]", "[PAD]"))

    @classmethod
    def from_folder(cls, folder: Path, lengths: Lengths) -> PairTokenizer:
        """Reads ``tokenizer.json``, or ``vocab.txt`` if there is none.

        Raises:
            FileNotFoundError: Neither file exists.
            ValueError: A file cannot be read; the message names it.
        """
        config: dict[str, Any] = {}
        file = folder / "tokenizer_config.json"
        try:
            if file.is_file():
                config = json.loads(file.read_text(encoding="utf-8"))
            if (file := folder / "tokenizer.json").is_file():
                tokenizer = Tokenizer.from_file(str(file))
            elif (file := folder / "vocab.txt").is_file():
                tokenizer = _wordpiece(file)
            else:
                raise FileNotFoundError(
                    f"no tokenizer in {folder}: expected tokenizer.json or vocab.txt. Copy it from the checkpoint's "
                    f"origin."
                )
            _apply_config(tokenizer, config)
        except FileNotFoundError:
            raise
        except Exception as error:  # the tokenizers library raises plain Exceptions
            raise ValueError(f"{file} cannot be read: {error}.") from error
        return cls(tokenizer, lengths, config)

    def with_lengths(self, lengths: Lengths) -> PairTokenizer:
        """The same tokenizer with other lengths."""
        return PairTokenizer(self.tokenizer, lengths, self.config)

    def encode_queries(self, queries: Sequence[str]) -> list[Tokens]:
        """Token ids of queries, truncated to the query length, without special tokens."""
        return self._encode(queries, self.lengths.query)

    def encode_docs(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of passages, truncated to the passage length, without special tokens."""
        return self._encode(texts, self.lengths.doc)

    def _encode(self, texts: Sequence[str], length: int | None) -> list[Tokens]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [Tokens(e.ids[:length], cut=length is not None and len(e) > length) for e in encodings]

    def join(self, query: Tokens, doc: Tokens) -> Pair:
        """[CLS] query [SEP] passage [SEP]."""
        query_tokens, doc_tokens = self.lengths.cut_pair(len(query.ids), len(doc.ids))
        return Pair(
            ids=[self.cls_id, *query.ids[:query_tokens], self.sep_id, *doc.ids[:doc_tokens], self.sep_id],
            first_segment=query_tokens + 2,
            query_cut=query.cut or query_tokens < len(query.ids),
            doc_cut=doc.cut or doc_tokens < len(doc.ids),
        )

    def pad(self, pairs: Sequence[Pair]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Token ids, token types and mask of a batch, padded to its longest pair, each of shape (pairs, tokens)."""
        longest = max(len(pair.ids) for pair in pairs)
        ids = np.full((len(pairs), longest), self.pad_id, dtype=np.int64)
        types = np.zeros_like(ids)
        mask = np.zeros(ids.shape, dtype=bool)
        for row, pair in enumerate(pairs):
            size = len(pair.ids)
            ids[row, :size] = pair.ids
            types[row, pair.first_segment : size] = 1
            mask[row, :size] = True
        return ids, types, mask


def _wordpiece(vocab: Path) -> Tokenizer:
    """BERT's uncased tokenizer with the tokens of ``vocab.txt``, one per line."""
    ids = {token: i for i, token in enumerate(vocab.read_text(encoding="utf-8").splitlines())}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if token not in ids]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    return Tokenizer.from_str(BertWordPieceTokenizer(ids).to_str())


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"The tokenizer has no {token} token; a BERT-style WordPiece tokenizer is needed.")
    return int(token_id)


def _apply_config(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Lets ``tokenizer_config.json`` override the normaliser, as ``transformers`` does."""
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
