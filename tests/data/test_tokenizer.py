import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax.checks import check_tokens
from babyjax.data.tokenizer import ByteTokenizer, CharTokenizer, tokenizer_from_json
from babyjax.errors import TokenError

KINDS = pytest.mark.parametrize("kind", [CharTokenizer, ByteTokenizer])


@given(st.text(min_size=1))
@KINDS
def test_round_trips_any_text_also_after_saving(kind, text):
    tokenizer = tokenizer_from_json(kind.fit(text).to_json())
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@given(st.text(min_size=1))
def test_char_ids_follow_the_sorted_characters(text):
    characters = sorted(set(text))
    tokenizer = CharTokenizer.fit(text)
    assert tokenizer.characters == "".join(characters)
    assert tokenizer.encode(text).tolist() == [characters.index(character) for character in text]


@pytest.mark.parametrize("unknown", ["d", "语", "\U0001f40d", " "])
def test_unknown_character_is_named_with_its_position(unknown):
    tokenizer = CharTokenizer.fit("abce")
    with pytest.raises(TokenError, match=rf"{unknown!r} \(U\+{ord(unknown):04X}\) at position 2 .* 4 characters"):
        tokenizer.encode(f"ab{unknown}a{unknown}")


@KINDS
@pytest.mark.parametrize("bad", [-1, 256])
def test_decoding_an_id_out_of_range_is_refused(kind, bad):
    with pytest.raises(TokenError, match=f"token id {bad} is outside the vocabulary"):
        kind.fit("abc").decode(np.array([0, bad, 1]))


@KINDS
@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        ([0.0, 1.0], "token ids must be integers, got float64"),
        ([True, False], "token ids must be integers, got bool"),
        (["a"], "token ids must be integers, got <U1"),
        ([0, 10**30], "token ids must be integers, got object"),
        ([[0, 1], [1, 0]], r"must be one-dimensional, got shape \[2, 2\]"),
        (np.array(1), r"must be one-dimensional, got shape \[\]"),
    ],
)
def test_what_are_no_ids_of_a_text_is_refused(kind, ids, complaint):
    with pytest.raises(TokenError, match=complaint):
        kind.fit("ab").decode(ids)


@KINDS
@pytest.mark.parametrize("dtype", ["i1", "u2", "<i4", ">i4", "i8", "u8"])
def test_integers_of_any_kind_are_ids(kind, dtype):
    tokenizer = kind.fit("ab")
    ids = tokenizer.encode("abba").astype(dtype)
    assert tokenizer.decode(ids) == "abba"
    assert tokenizer.decode(ids[::-2]) == "ab"
    assert tokenizer.decode([]) == ""
    check_tokens(ids, 256)


def test_bytes_that_stop_inside_a_character_are_shown_as_replacement():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("明月")[:-1]) == "明�"


def test_a_lone_surrogate_is_refused_unless_it_is_a_byte_of_the_command_line():
    with pytest.raises(TokenError, match=r"character '\\ud800' at position 1 has no UTF-8 bytes"):
        ByteTokenizer().encode("a\ud800")
    assert ByteTokenizer().encode("a\udcff").tolist() == [97, 255]
    with pytest.raises(TokenError, match=r"U\+D800"):
        CharTokenizer.fit("ab").encode("a\ud800")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"type": "bpe"}',
        '{"type": []}',
        '{"type": "char"}',
        '{"type": "char", "characters": 5}',
        '{"type": "char", "characters": ""}',
        '{"type": "char", "characters": "ba"}',
        '{"type": "char", "characters": "ab", "more": 1}',
        "[" * 200_000,
        '{"type": ' + "1" * 5000 + "}",
    ],
    ids=range(12),
)
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(TokenError) as caught:
        tokenizer_from_json(text)
    assert len(str(caught.value)) < 200
