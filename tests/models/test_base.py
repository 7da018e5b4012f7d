"""Every model obeys the protocol, and its decoder computes what the model does."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ladder import BLOCK, QUICK_RUNGS, RUNGS, V, filled, logits_of, mostly_slow, small

from babyjax import Mixture, estimate_ngram
from babyjax.models.base import Decoder, LanguageModel
from babyjax.models.bigram import Bigram

OTHERS = ("bigram", "ngram", "mixture")
TOKENS = jax.random.randint(jax.random.key(0), (3, BLOCK), 0, V)


def a_model(name: str) -> LanguageModel:
    if name == "bigram":
        return Bigram(jax.random.randint(jax.random.key(1), (V, V), 0, 9))
    if name == "ngram":
        return estimate_ngram(np.random.default_rng(0).integers(0, V, 99), V, BLOCK + 1)
    if name == "mixture":
        parts = [a_model("ngram"), a_model("babygpt-v2-position")]
        return Mixture(parts, jnp.log(jnp.array([[0.2, 0.8], [0.9, 0.1]])))
    return filled(small(name), V)


@pytest.fixture(params=mostly_slow([*OTHERS, *RUNGS], "bigram", "ngram", *QUICK_RUNGS))
def model(request):
    return a_model(request.param)


def test_every_model_answers_the_protocol(model):
    assert isinstance(model, LanguageModel)
    assert model.vocab_size == V
    assert 1 <= model.context_length <= BLOCK
    assert isinstance(model.flops(BLOCK), int)
    assert isinstance(model.halves_overlap, bool)
    chex.assert_tree_shape_prefix(jax.eval_shape(lambda: model.decoder().init_cache(3)), (3,))
    logits = jax.eval_shape(lambda: model(TOKENS, key=jax.random.key(0)))
    chex.assert_shape(logits, (3, BLOCK, V))
    chex.assert_type(logits, jnp.float32)


def test_no_logit_depends_on_a_token_beyond_the_context(model):
    length = model.context_length
    logits = logits_of(model, TOKENS)
    before = TOKENS.at[:, : BLOCK - length].set(0)
    chex.assert_trees_all_close(logits_of(model, before)[:, -1], logits[:, -1], atol=2e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_nats_are_the_cross_entropy_of_the_logits(name):
    model = a_model(name)
    log_p = jax.nn.log_softmax(logits_of(model, TOKENS))[:, :-1]
    expected = -jnp.take_along_axis(log_p, TOKENS[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(jax.jit(lambda model: model.nats(TOKENS))(model), expected, atol=1e-5)


def own_decoder(model: LanguageModel) -> Decoder:
    return model.decoder()


@partial(jax.jit, static_argnames="make_decoder")
def each_token(model, tokens, make_decoder):
    """The logits after each token, read one by one."""
    decoder = make_decoder(model)

    def read(cache, column):
        logits, longer = decoder.extend(cache, column[:, None])
        # A window of one token has no room for a second.
        return cache if decoder.capacity == 1 else longer, logits

    return jax.lax.scan(read, decoder.init_cache(len(tokens)), tokens.T)[1].swapaxes(0, 1)


@pytest.mark.parametrize("make_decoder", [Decoder, own_decoder], ids=["default", "own"])
def test_a_decoder_gives_every_position_the_logits_of_the_whole(model, make_decoder):
    np.testing.assert_allclose(each_token(model, TOKENS, make_decoder), logits_of(model, TOKENS), atol=1e-5)


def test_what_was_read_last_stays_if_nothing_more_is_read():
    decoder = a_model("bigram").decoder()
    _, cache = decoder.extend(decoder.init_cache(3), TOKENS)
    _, longer = decoder.extend(cache, (TOKENS + 1) % V, jnp.array([0, 2, 0]))
    assert longer.tolist() == [int(TOKENS[0, -1]), int(TOKENS[1, 1] + 1) % V, int(TOKENS[2, -1])]


PIECES = {name: a_model(name) for name in ("ngram", "mixture", "babygpt-v6-blocks", "gpt2")}
EXTEND = {
    "own": jax.jit(lambda model, cache, tokens, counts: model.decoder().extend(cache, tokens, counts)),
    "default": jax.jit(lambda model, cache, tokens, counts: Decoder(model).extend(cache, tokens, counts)),
}


KINDS = [*((name, "own") for name in PIECES), ("babygpt-v6-blocks", "default")]


@pytest.mark.slow
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_texts_read_in_pieces_of_any_lengths_give_the_logits_of_the_whole(data, kind):
    name, kind = kind
    model, extend, batch = PIECES[name], EXTEND[kind], 3
    tokens = np.array(data.draw(st.lists(st.integers(0, V - 1), min_size=batch * BLOCK, max_size=batch * BLOCK)))
    tokens = tokens.reshape(batch, BLOCK).astype(np.int32)
    expected, lengths, rows = np.asarray(logits_of(model, tokens)), np.zeros(batch, int), np.arange(batch)
    cache = (model.decoder() if kind == "own" else Decoder(model)).init_cache(batch)
    while (room := BLOCK - int(lengths.max())) > 0:
        width = data.draw(st.sampled_from([width for width in (1, 4, 8) if width <= room]))
        counts = st.lists(st.integers(0, width), min_size=batch, max_size=batch).filter(any)
        counts = np.array(data.draw(counts), np.int32)
        places = np.minimum(lengths[:, None] + np.arange(width), BLOCK - 1)
        logits, cache = extend(model, cache, tokens[rows[:, None], places], counts)
        lengths = lengths + counts
        read = counts > 0
        np.testing.assert_allclose(logits[read], expected[rows, lengths - 1][read], atol=1e-5)
