from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path

import families
import pytest
import tiny
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.processors import TemplateProcessing

from pyterrier_rankdistillm.scoring.tokenizer import Lengths, Pair, PairTokenizer, Tokens

TEXTS = [
    "why does bread rise",
    "The CAT sat, on the mat!",
    "",
    "   ",
    "rain [SEP] snow [CLS] [PAD] [MASK] [UNK] water",
    "Caf\u00e9 stra\u00dfe",
    "\u6c34\u6c34 water",
    "\U0001f600 \u0645\u0627\u0621 \u200b\u00a0zero\u0000width\tand\nnewline",
    "the moon is not the sun and the sun is not the moon and it is raining in the garden",
]


def reference(lowercase: bool = True) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tiny.VOCAB)}
    return Tokenizer.from_str(BertWordPieceTokenizer(vocab, lowercase=lowercase).to_str())


def pair_tokenizer(query: int | None = None, doc: int | None = None, pair: int = 512) -> PairTokenizer:
    return PairTokenizer(reference(), Lengths(query, doc, pair))


def join(tokenizer: PairTokenizer, query: str, text: str) -> Pair:
    return tokenizer.join(tokenizer.encode_queries([query])[0], tokenizer.encode_docs([text])[0])


def token_types(pair: Pair) -> list[int]:
    return [0] * pair.first_segment + [1] * (len(pair.ids) - pair.first_segment)


def tokens(pair: Pair) -> list[str]:
    return [tiny.VOCAB[token_id] for token_id in pair.ids]


@pytest.mark.parametrize("pair_length", [512, 17, 8, 7, 4])
@pytest.mark.parametrize(("query", "text"), list(itertools.product(TEXTS, TEXTS)))
def test_equals_the_tokenizers_own_pair_encoding(query: str, text: str, pair_length: int) -> None:
    library = reference()
    library.enable_truncation(pair_length, strategy="longest_first")
    expected = library.encode(query, text)
    pair = join(pair_tokenizer(pair=pair_length), query, text)
    assert pair.ids == expected.ids
    assert token_types(pair) == expected.type_ids
    assert (pair.query_cut or pair.doc_cut) == bool(expected.overflowing)


@pytest.mark.parametrize("room", range(10))
def test_cut_pair_equals_the_tokenizers_longest_first(room: int) -> None:
    library = reference()
    library.enable_truncation(room + 3, strategy="longest_first")
    lengths = Lengths(None, None, room + 3)
    for query_tokens, doc_tokens in itertools.product(range(13), range(13)):
        types = library.encode("cat " * query_tokens, "sun " * doc_tokens).type_ids
        expected = (types.count(0) - 2, types.count(1) - 1)
        assert lengths.cut_pair(query_tokens, doc_tokens) == expected, (query_tokens, doc_tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_each_side_is_cut_to_its_own_length(text: str) -> None:
    ids = reference().encode(text, add_special_tokens=False).ids
    pair = join(pair_tokenizer(query=3, doc=5), text, text)
    assert pair == Pair(
        ids=[2, *ids[:3], 3, *ids[:5], 3],
        first_segment=len(ids[:3]) + 2,
        query_cut=len(ids) > 3,
        doc_cut=len(ids) > 5,
    )


def test_literal_pair() -> None:
    pair = join(pair_tokenizer(query=2, doc=3), "Why does bread rise", "The cats")
    assert tokens(pair) == ["[CLS]", "why", "does", "[SEP]", "the", "cat", "##s", "[SEP]"]
    assert token_types(pair) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (pair.query_cut, pair.doc_cut) == (True, False)


def test_empty_texts_are_pairs_too() -> None:
    pair = join(pair_tokenizer(query=2, doc=3), "", "")
    assert tokens(pair) == ["[CLS]", "[SEP]", "[SEP]"]
    assert token_types(pair) == [0, 0, 1]


def test_special_token_strings_are_special_tokens_as_in_lightning_ir() -> None:
    pair = join(pair_tokenizer(), "cat [SEP] sun", "[CLS][MASK]")
    assert tokens(pair) == ["[CLS]", "cat", "[SEP]", "sun", "[SEP]", "[CLS]", "[MASK]", "[SEP]"]
    assert token_types(pair) == [0, 0, 0, 0, 0, 1, 1, 1]


def test_exactly_as_long_as_allowed_is_not_cut() -> None:
    tokenizer = pair_tokenizer(query=2, doc=3)
    assert tokenizer.encode_queries(["sun moon", "sun moon cat"]) == [
        Tokens(tokenizer.encode_queries(["sun moon"])[0].ids, cut=False),
        Tokens(tokenizer.encode_queries(["sun moon"])[0].ids, cut=True),
    ]
    pair = join(tokenizer, "sun moon", "sun moon cat")
    assert (pair.query_cut, pair.doc_cut) == (False, False)


def test_pairs_over_the_positions_report_the_side_that_lost_tokens() -> None:
    pair = join(pair_tokenizer(pair=10), "sun moon", "cat " * 20)
    assert (len(pair.ids), pair.query_cut, pair.doc_cut) == (10, False, True)


def test_many_texts_are_encoded_in_order() -> None:
    tokenizer = pair_tokenizer()
    assert tokenizer.encode_docs(TEXTS) == [tokenizer.encode_docs([text])[0] for text in TEXTS]
    assert tokenizer.encode_docs([]) == []


@pytest.mark.parametrize(("query", "doc", "name"), [(0, 5, "query_length"), (5, 0, "doc_length"), (-1, None, "query")])
def test_lengths_below_one_are_errors(query: int | None, doc: int | None, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.* at least 1"):
        Lengths(query, doc, 512)


def test_lengths_beyond_the_positions_are_errors_that_name_the_limit() -> None:
    with pytest.raises(ValueError, match=r"at most 509 tokens.*got 32 \+ 478"):
        Lengths(32, 478, 512)
    assert Lengths(32, 477, 512).doc == 477


def test_one_open_length_is_cut_by_the_positions() -> None:
    lengths = Lengths(4, None, 12)
    assert lengths.cut_pair(4, 100) == (4, 5)


def test_saved_truncation_and_padding_are_ignored(tmp_path: Path) -> None:
    tokenizer = reference()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    opened = PairTokenizer.from_folder(tmp_path, Lengths(None, None, 512))
    pair = join(opened, "cat", "sun " * 30)
    assert len(pair.ids) == 1 + 3 + 30
    assert 0 not in pair.ids  # no [PAD]


@pytest.mark.parametrize("fast", [True, False], ids=["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_do_lower_case_of_the_config_overrides_the_normaliser(tmp_path: Path, lowercase: bool, fast: bool) -> None:
    tiny.write_tokenizer(tmp_path, lowercase=not lowercase, fast=fast)
    tiny.write_json(tmp_path / "tokenizer_config.json", {"do_lower_case": lowercase})
    opened = PairTokenizer.from_folder(tmp_path, Lengths(None, None, 512))
    for text in ["Cat CAT cat", *TEXTS]:
        expected = reference(lowercase).encode(text, add_special_tokens=False).ids
        assert opened.encode_docs([text])[0].ids == expected


def test_strip_accents_and_chinese_characters_of_the_config_override_the_normaliser(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    tiny.write_json(
        tmp_path / "tokenizer_config.json",
        {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
    )
    opened = PairTokenizer.from_folder(tmp_path, Lengths(None, None, 512))
    unknown = tiny.VOCAB.index("[UNK]")
    assert opened.encode_docs(["\u00e9", "\u6c34\u6c34"]) == [
        Tokens([tiny.VOCAB.index("\u00e9")], cut=False),
        Tokens([unknown], cut=False),  # one word of two characters, not two words
    ]


def test_config_without_a_word_on_case_keeps_the_normaliser(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path, lowercase=False)
    (tmp_path / "tokenizer_config.json").unlink()
    opened = PairTokenizer.from_folder(tmp_path, Lengths(None, None, 512))
    assert opened.encode_docs(["C"])[0].ids == [tiny.VOCAB.index("C")]


def test_vocab_txt_gives_the_ids_of_tokenizer_json(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    fast = PairTokenizer.from_folder(tmp_path, Lengths(None, None, 512))
    (tmp_path / "tokenizer.json").unlink()
    assert PairTokenizer.from_folder(tmp_path, Lengths(None, None, 512)).encode_docs(TEXTS) == fast.encode_docs(TEXTS)


def test_no_tokenizer_file_is_an_error_that_names_both(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json or vocab\.txt"):
        PairTokenizer.from_folder(tmp_path, Lengths(None, None, 512))


def test_tokenizer_without_the_special_tokens_is_an_error_that_names_one() -> None:
    vocab = {token: i for i, token in enumerate(tiny.VOCAB)}
    state = json.loads(BertWordPieceTokenizer(vocab).to_str())
    state["added_tokens"] = []
    state["model"]["vocab"] = {token: i for token, i in vocab.items() if token != "[SEP]"}
    state["post_processor"] = None
    with pytest.raises(ValueError, match=r"no \[SEP\] token"):
        PairTokenizer(Tokenizer.from_str(json.dumps(state)), Lengths(None, None, 512))


def test_other_lengths_leave_the_tokenizer_as_it_was() -> None:
    tokenizer = pair_tokenizer(query=2, doc=3)
    longer = tokenizer.with_lengths(Lengths(4, 6, 512))
    assert len(longer.encode_docs(["sun " * 9])[0].ids) == 6
    assert len(tokenizer.encode_docs(["sun " * 9])[0].ids) == 3


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\u0085", "\x1c", "\x0b", "\x0c"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_vocab_txt_is_split_at_newlines_only(tmp_path: Path, odd: str, end: str) -> None:
    """Each of these is a line's end for ``str.splitlines``, and a token of some published vocabularies."""
    vocab = [*tiny.VOCAB[:5], odd, *tiny.VOCAB[5:]]
    (tmp_path / "vocab.txt").write_bytes("".join(token + end for token in vocab).encode())
    opened = PairTokenizer.from_folder(tmp_path, Lengths(None, None, 512))
    assert opened.encode_docs(["cat"])[0].ids == [vocab.index("cat")]
    assert opened.largest_id == len(vocab) - 1


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level", "sentencepiece"])
def test_a_long_text_is_cut_as_if_it_had_been_tokenised_whole(tmp_path: Path, kind: str) -> None:
    getattr(families, kind)(tmp_path)
    generator = random.Random(3)
    words = [*tiny.WORDS.split(), "\u6c34\u6c34", "Caf\u00e9", "x" * 90, "\U0001f600", "[MASK]", "<mask>", "\n\n", "  "]
    texts = [" ".join(generator.choices(words, k=9_000)), "y" * 30_000, " " * 30_000 + "cat sun", "cat" + " " * 40_000]
    for lengths in (Lengths(6, 200, 512), Lengths(None, None, 512)):
        opened = PairTokenizer.from_folder(tmp_path, lengths)
        whole = [opened.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        for text, ids in zip(texts, whole, strict=True):
            query, doc = opened.encode_queries(["cat"])[0], opened.encode_docs([text])[0]
            kept = opened.lengths.cut_pair(len(query.ids), min(len(ids), lengths.doc or len(ids)))[1]
            pair = opened.join(query, doc)
            size = len(pair.ids) - pair.first_segment - len(opened.template.after)
            assert pair.ids[pair.first_segment : pair.first_segment + size] == ids[:kept]
            assert pair.doc_cut == (kept < len(ids))


def test_two_megabytes_take_no_longer_than_what_is_read_of_them() -> None:
    tokenizer = pair_tokenizer(query=3, doc=256)
    text = "the moon is not the sun and it is raining in the garden " * 40_000
    seconds = []
    for given in (text[:20_000], text):
        started = time.perf_counter()
        tokenizer.encode_docs([given] * 4)
        seconds.append(time.perf_counter() - started)
    assert seconds[1] < 20 * seconds[0]  # 110 times as long


def test_the_special_tokens_of_a_pair_come_from_the_post_processor(tmp_path: Path) -> None:
    families.byte_level(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    opened = PairTokenizer.from_folder(tmp_path, Lengths(None, None, 512))
    assert opened.template.special_tokens == opened.lengths.special_tokens == 4
    for query, text in itertools.product(TEXTS, TEXTS):
        expected = library.encode(query, text)
        pair = join(opened, query, text)
        assert pair.ids == expected.ids
        ids, types, mask = opened.pad([pair])
        assert (ids[0].tolist(), types[0].tolist()) == (expected.ids, expected.type_ids)
        assert mask.all()


def test_token_types_are_those_of_the_template() -> None:
    tokenizer = reference()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS]:2 $A:1 [SEP]:0 [SEP]:2 $B:2 [CLS]:1", special_tokens=special
    )
    opened = PairTokenizer(tokenizer, Lengths(None, None, 512))
    pairs = [join(opened, query, text) for query, text in (("sun moon", "cat"), ("", ""), ("cat", ""), ("", "a b c"))]
    ids, types, mask = opened.pad(pairs)
    for row, (query, text) in enumerate((("sun moon", "cat"), ("", ""), ("cat", ""), ("", "a b c"))):
        expected = tokenizer.encode(query, text)
        size = len(expected.ids)
        assert (ids[row, :size].tolist(), types[row, :size].tolist()) == (expected.ids, expected.type_ids)
        assert mask[row].tolist() == [True] * size + [False] * (ids.shape[1] - size)
    opened = PairTokenizer(tokenizer, Lengths(None, None, 512), {"model_input_names": ["input_ids", "attention_mask"]})
    assert not opened.pad(pairs)[1].any()


def test_a_post_processor_that_turns_the_pair_round_is_an_error() -> None:
    tokenizer = reference()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $B [SEP] $A", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(ValueError, match="does not put the query before the passage"):
        PairTokenizer(tokenizer, Lengths(None, None, 512))
