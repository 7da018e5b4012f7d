import json
import sys
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from babyjax.data import subwords
from babyjax.data.documents import END_OF_TEXT
from babyjax.data.subwords import SubwordTokenizer, tokenizer_json
from babyjax.data.tokenizer import ByteTokenizer, CharTokenizer, make_tokenizer, tokenizer_from_json
from babyjax.errors import BabyjaxError, ConfigError, TokenError

tokenizers = pytest.importorskip("tokenizers")
TEXT = "the cat sat on the mat, the cat sat on the hat.\n詩 and 🙂 " * 20


def byte_level() -> SubwordTokenizer:
    """A byte-pair encoding such as GPT-2's, with a special token."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return SubwordTokenizer.read(tokenizer.to_str())


def metaspace() -> SubwordTokenizer:
    """One that writes spaces as U+2581 and unknown bytes as <0xNN>, such as Llama's first."""
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    vocab |= {
        piece: 257 + index for index, piece in enumerate(["\u2581", "t", "h", "e", "\u2581t", "\u2581th", "\u2581the"])
    }
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e")]
    model = tokenizers.models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("\u2581", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    return SubwordTokenizer.read(tokenizer.to_str())


# With tokens of several spaces and line ends, of "n't" and of "!!", which show where words are cut.
SPACED = SubwordTokenizer.fit("a   don't\n\n\n  we're !!'s ..  11\t\t\x03" * 30, 300)
BYTE_LEVEL, METASPACE, LEARNED = byte_level(), metaspace(), SubwordTokenizer.fit(TEXT, 270)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte level", "metaspace"])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_text_comes_back_and_its_bytes_are_those_of_its_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert ids.dtype == np.int32


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_a_byte_pair_encoding_of_another_text_encodes_every_text(text):
    assert LEARNED.decode(ids := LEARNED.encode(text)) == text
    assert LEARNED.byte_lengths[ids].sum() == len(text.encode())


def test_a_byte_pair_encoding_is_learned_from_the_training_part_of_a_text_alone():
    def learned(text):
        return make_tokenizer("bpe", lambda: [text[:100], text[100:]], 290)

    assert LEARNED.vocab_size == 270
    assert learned(TEXT + "zq" * (len(TEXT) // 20)) == learned(TEXT + "qz" * (len(TEXT) // 20))
    assert learned(TEXT + "zq" * len(TEXT)) != learned(TEXT + "qz" * len(TEXT))


LINES = st.text(st.sampled_from("ab \n\t\r\x03'é詩\u2028\u3000\x1c!"), max_size=60)


@pytest.mark.parametrize("tokenizer", [METASPACE, SPACED], ids=["metaspace", "spaced"])
@settings(max_examples=100)
@given(text=LINES, cuts=st.lists(st.integers(0, 60)))
@example(text="aaa   bbb   aaa   bbb" * 3, cuts=[])
@example(text="aa    bbb", cuts=[6])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(tokenizer, text, cuts):
    library = tokenizers.Tokenizer.from_str(tokenizer.content)
    pieces = [text[start:end] for start, end in pairwise([0, *sorted(cuts), len(text)])]
    with mock.patch.object(subwords, "GROUP", 3), mock.patch.object(subwords, "GROUPS", 2):
        ids = [token for chunk in tokenizer.encode_chunks(pieces) for token in chunk.tolist()]
    assert ids == library.encode(text, add_special_tokens=False).ids


WESTERN = st.text(
    st.one_of(st.sampled_from("'sdmtrvel   \n\n\t\x03.1!"), st.sampled_from(list(map(chr, subwords.WESTERN)))),
    max_size=40,
)


@settings(max_examples=200)
@given(text=WESTERN)
@example("don't I'm it's we'll I'd we've you're  \x03 a   b\n\n\nc \t\x03\xa0\x85 d!? 12a\x1c 1²é")
def test_words_are_those_of_the_library(text):
    rule = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    documents = [
        [document[start:end] for _, (start, end) in rule.pre_tokenize_str(document)] for document in text.split("\x03")
    ]
    expected = documents[0] + [word for document in documents[1:] for word in ["\x03", *document]]
    assert SPACED._rule
    assert SPACED._rule.words_of(text) == expected
    library = tokenizers.Tokenizer.from_str(SPACED.content)
    assert SPACED.encode(text).tolist() == library.encode(text, add_special_tokens=False).ids


def test_an_added_token_is_left_to_the_library():
    text = "the end<|end|>the end"
    assert BYTE_LEVEL._rule
    assert BYTE_LEVEL._rule.words_of(text) is None
    library = tokenizers.Tokenizer.from_str(BYTE_LEVEL.content)
    assert BYTE_LEVEL.encode(text).tolist() == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("between", ["\n", " ", "\u3000", "\x03"])
def test_a_text_is_encoded_in_groups_whatever_stands_between_its_words(between):
    text = between.join(["wordswithoutanything"] * 1000)
    assert LEARNED._rule
    groups = list(subwords._groups([text[:777], text[777:]], LEARNED._rule.cut))
    assert "".join(groups) == text
    assert max(map(len, groups)) < subwords.GROUP + 21
    assert METASPACE._rule is None


@given(text=LINES, cuts=st.lists(st.integers(0, 60)))
def test_a_byte_pair_encoding_is_learned_from_pieces_as_from_the_whole(text, cuts):
    pieces = [text[start:end] for start, end in pairwise([0, *sorted(cuts), len(text)])]
    whole = SubwordTokenizer.fit(text, 270)
    with mock.patch.object(subwords, "GROUP", 3):
        assert SubwordTokenizer.fit_chunks(pieces, 270).content == whole.content


@pytest.mark.parametrize(("text", "size"), [("", 257), ("a", 257), ("no no no no", 259), ("the the theme", 260)])
def test_a_byte_pair_encoding_has_no_token_for_pairs_that_occur_once(text, size):
    learned = SubwordTokenizer.fit(text, 8192)
    assert learned.vocab_size == size
    assert (learned.words[0], learned.words[1], learned.end_of_text) == ("0:U+0003", "1:!", 0)


def test_no_token_of_a_byte_pair_encoding_is_wasted():
    """None spans two documents, and those that span line ends are learned as they are used."""
    code = "def f(x):\n\n    if x:\n        return g(x)\n\n\n    return 0."
    learned = SubwordTokenizer.fit(END_OF_TEXT.join([code] * 50), 8192)
    library = tokenizers.Tokenizer.from_str(learned.content)
    assert not any("\u0103" in token and token != "\u0103" for token in library.get_vocab())
    assert {"\u010a\u010a", "\u010a\u0120\u0120\u0120"} <= library.get_vocab().keys()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BabyjaxError, match=r"needs the extra hf: pip install 'babyjax\[hf\]'"):
        make_tokenizer("bpe", lambda: [TEXT])


def test_a_special_token_is_the_bytes_of_its_text():
    ids = BYTE_LEVEL.encode("the <|end|>")
    assert BYTE_LEVEL.decode(ids) == "the <|end|>"
    assert BYTE_LEVEL.byte_lengths[ids].sum() == len("the <|end|>")


def test_a_subword_tokenizer_goes_through_json_and_has_a_word_for_every_id():
    again = tokenizer_from_json(BYTE_LEVEL.to_json())
    assert again == BYTE_LEVEL
    assert again.vocab_size == len(set(again.words)) > 257
    assert not any(character.isspace() for word in again.words for character in word)
    assert len(BYTE_LEVEL.encode(TEXT)) < 0.6 * len(TEXT.encode())


def test_a_tokenizer_that_changes_the_text_is_refused():
    content = json.loads(BYTE_LEVEL.content) | {"normalizer": {"type": "Lowercase"}}
    lower = SubwordTokenizer.read(json.dumps(content))
    np.testing.assert_array_equal(lower.encode("the"), BYTE_LEVEL.encode("the"))
    with pytest.raises(TokenError, match="the tokenizer changes 'C' in this text, near 'the Cat'"):
        lower.encode("the Cat")
    gaps = SubwordTokenizer.read(tokenizer_json(CharTokenizer("abc")).replace('"c": 2', '"c": 5'))
    assert (gaps.vocab_size, gaps.byte_lengths.tolist()) == (6, [1, 1, 0, 0, 0, 1])
    with pytest.raises(TokenError, match=r"cannot encode this text|changes .* in this text"):
        gaps.encode("abx")
    with pytest.raises(TokenError, match="token id 6 is outside the vocabulary"):
        gaps.decode([6])


def test_a_tokenizer_that_miscounts_bytes_is_refused():
    """One whose decoder turns the letter X into two."""
    content = json.loads(tokenizer_json(CharTokenizer("Xab")))
    doubling = {"type": "Replace", "pattern": {"String": "X"}, "content": "ab"}
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], doubling]}
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "ab"}, "content": "X"}
    doubled = SubwordTokenizer.read(json.dumps(content))
    assert doubled.decode(doubled.encode("ba")) == "ba"
    with pytest.raises(
        TokenError, match="the tokens of this text have 3 bytes by the tokenizer's file, but the text has 6"
    ):
        doubled.encode("ababab")


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), CharTokenizer.fit("\t\n\r ab\u0301é詩🙂\u2581#<>")], ids=["byte", "char"]
)
def test_our_tokenizers_are_the_same_in_the_library(tokenizer):
    library = tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer))
    text = "a\r\n\tb 詩🙂\u2581 b\u0301é##a<b>\n\n  "
    ids = tokenizer.encode(text)
    assert library.encode(text).ids == ids.tolist()
    assert library.decode(ids.tolist()) == text
    assert SubwordTokenizer.read(tokenizer_json(tokenizer)).byte_lengths.tolist() == tokenizer.byte_lengths.tolist()


def test_a_tokenizer_is_named_by_its_file_or_the_folder_it_is_in(tmp_path):
    (tmp_path / "tokenizer.json").write_text(BYTE_LEVEL.to_json())
    for which in (tmp_path, tmp_path / "tokenizer.json"):
        assert make_tokenizer(str(which), lambda: [TEXT]) == BYTE_LEVEL
    (tmp_path / "own.json").write_text(CharTokenizer("ab").to_json())
    assert make_tokenizer(str(tmp_path / "own.json"), lambda: [""]) == CharTokenizer("ab")
    assert make_tokenizer("byte", lambda: [TEXT]) == ByteTokenizer()
    with pytest.raises(
        ConfigError, match=r"data\.tokenizer=bpc is not char, byte, bpe or the path of a tokenizer\.json"
    ):
        make_tokenizer("bpc", lambda: [TEXT])


def test_what_a_file_says_of_lengths_is_ignored_and_absurd_numbers_are_refused():
    short = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content = json.loads(BYTE_LEVEL.content)
    cut = SubwordTokenizer.read(json.dumps(content | {"truncation": short}))
    np.testing.assert_array_equal(cut.encode(TEXT), BYTE_LEVEL.encode(TEXT))
    huge = tokenizer_json(CharTokenizer("abc")).replace('"c": 2', '"c": 4294967295')
    with pytest.raises(TokenError, match="a token of number 4,294,967,295; more than 16,777,216 are not supported"):
        SubwordTokenizer.read(huge)
    precompiled = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(TokenError, match="the tokenizers library"):
        SubwordTokenizer.read(json.dumps(content | {"normalizer": precompiled})).encode("the \u00e9")
