import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax.data.tokenizer import ByteTokenizer, CharTokenizer, tokenizer_from_json
from babyjax.errors import TokenError


@given(st.text(min_size=1))
@pytest.mark.parametrize("kind", [CharTokenizer, ByteTokenizer])
def test_round_trips_any_text_also_after_saving(kind, text):
    tokenizer = tokenizer_from_json(kind.fit(text).to_json())
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@given(st.text(min_size=1))
def test_char_ids_are_those_of_the_seeds_dictionary(text):
    characters = sorted(set(text))
    tokenizer = CharTokenizer.fit(text)
    assert tokenizer.characters == "".join(characters)
    assert tokenizer.encode(text).tolist() == [characters.index(character) for character in text]


@pytest.mark.parametrize("unknown", ["d", "语", "\U0001f40d", " "])
def test_unknown_character_is_named_with_its_position(unknown):
    tokenizer = CharTokenizer.fit("abce")
    with pytest.raises(TokenError, match=rf"{unknown!r} \(U\+{ord(unknown):04X}\) at position 2 .* 4 characters"):
        tokenizer.encode(f"ab{unknown}a{unknown}")


@pytest.mark.parametrize("kind", [CharTokenizer, ByteTokenizer])
@pytest.mark.parametrize("bad", [-1, 256])
def test_decoding_an_id_out_of_range_is_refused(kind, bad):
    with pytest.raises(TokenError, match=f"token id {bad} is outside the vocabulary"):
        kind.fit("abc").decode(np.array([0, bad, 1]))


def test_bytes_that_stop_inside_a_character_are_shown_as_replacement():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("明月")[:-1]) == "明�"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"type": "bpe"}', '{"type": "char"}', '{"type": "char", "characters": "ba"}']
)
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(TokenError):
        tokenizer_from_json(text)
