"""Sampling text: one compiled loop over new tokens, for a batch of prompts of any lengths.

A row's context starts as the last `context_length` tokens of its prompt and grows by every new token. Once the decoder
is full, the older half is dropped before the next token is read, and positions start anew at the half that is kept. So
a context has between half of the decoder's capacity and all of it, and a decoder with a cache reads a token at most
twice. A decoder without a limit reads every token once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer, Key

from babyjax.checks import check_tokens
from babyjax.errors import ConfigError, TokenError
from babyjax.generation.draw import sample_token
from babyjax.models.base import LanguageModel

ENDED = -1  # fills a row after its stop token


def generate(
    model: LanguageModel,
    prompts: Integer[Array, "B T"] | Integer[np.ndarray, "B T"] | Sequence[Any],
    key: Key[Array, ""],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    *,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    vocab_size: int | None = None,
) -> Int[Array, "B N"]:
    """Sample `max_new_tokens` continuations of prompts, int[B, T] or a sequence of int[T].

    Returns int32[B, max_new_tokens], padded with -1 after a stop token. Row b has its own stream of random numbers and
    sees nothing of the other rows, so it is the same in a batch of any size, beside prompts of any length.
    `vocab_size` restricts the draw to the first tokens, for a model with room for more. `sample_token` explains the
    other options.

    Raises: TokenError if a prompt is empty or outside the vocabulary, ConfigError if an option is out of range.
    """
    for option, valid in {
        f"max_new_tokens must be at least 0, got {max_new_tokens}": max_new_tokens >= 0,
        f"temperature must be at least 0, got {temperature}": temperature >= 0,
        f"top_k must be at least 1, got {top_k}": top_k is None or top_k >= 1,
        f"top_p must lie in (0, 1], got {top_p}": top_p is None or 0 < top_p <= 1,
        f"min_p must lie in [0, 1], got {min_p}": min_p is None or 0 <= min_p <= 1,
        f"vocab_size must lie in [1, {model.vocab_size}], got {vocab_size}": vocab_size is None
        or 1 <= vocab_size <= model.vocab_size,
    }.items():
        if not valid:
            raise ConfigError(option)
    window, lengths = _window_of(prompts, model)
    if max_new_tokens == 0:
        return jnp.zeros((len(window), 0), jnp.int32)
    stops = jnp.asarray(stop_tokens, jnp.int32)
    return _generate(model, window, lengths, key, (temperature, top_p, min_p), stops, max_new_tokens, top_k, vocab_size)


def _window_of(prompts: Any, model: LanguageModel) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, " B"]]:
    """The end of each prompt, as much as fits the context, padded to a power of 2 so that lengths share a program."""
    rows = [np.asarray(prompt) for prompt in prompts]
    if not rows:
        raise TokenError("prompts is empty; give at least one prompt")
    for index, row in enumerate(rows):
        if row.ndim != 1 or row.size == 0:
            raise TokenError(f"prompt {index} has shape {row.shape}; it must be (T,) with at least one token")
        check_tokens(row, model.vocab_size)
    size = max(1, model.context_length)
    lengths = np.array([min(row.size, size) for row in rows], np.int32)
    window = np.zeros((len(rows), min(size, 1 << int(lengths.max() - 1).bit_length())), np.int32)
    for row, length, to in zip(rows, lengths, window, strict=True):
        to[:length] = row[-size:]
    return window, lengths


class _Loop(NamedTuple):
    """The loop after `drawn` new tokens. `cache` has read the context of row b, `window[b, :length[b]]`."""

    drawn: Int[Array, ""]
    tokens: Int[Array, "B N"]
    last: Int[Array, " B"]  # the newest token, not read yet
    ended: Bool[Array, " B"]
    window: Int[Array, "B S"]
    length: Int[Array, " B"]
    cache: Any


@partial(jax.jit, static_argnames=("max_new_tokens", "top_k", "vocab_size"))
def _generate(model, prompts, lengths, key, limits, stops, max_new_tokens, top_k, vocab_size):
    decoder, batch = model.decoder(), len(prompts)
    size = decoder.capacity or prompts.shape[1]
    if prompts.shape[1] > size:  # a part of a mixture holds less than another
        ends = jnp.maximum(lengths, size)[:, None] - size + jnp.arange(size)
        prompts, lengths = jnp.take_along_axis(prompts, ends, axis=1), jnp.minimum(lengths, size)
    limited = decoder.capacity is not None and prompts.shape[1] + max_new_tokens - 1 > size
    kept, rows = size // 2, jnp.arange(batch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    temperature, top_p, min_p = limits
    draw = jax.vmap(partial(sample_token, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))

    def unfinished(loop):
        return (loop.drawn < max_new_tokens) & ~loop.ended.all()

    def read_token(loop):
        """Read the last token of each row, which has room for it, and draw the next."""
        logits, cache = decoder.extend(loop.cache, loop.last[:, None])
        token = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, loop.drawn), logits[:, :vocab_size])
        shown = jnp.where(loop.ended, ENDED, token)
        return _Loop(
            drawn=loop.drawn + 1,
            tokens=jax.lax.dynamic_update_index_in_dim(loop.tokens, shown, loop.drawn, axis=1),
            last=token,
            ended=loop.ended | (token[:, None] == stops).any(axis=1),
            window=loop.window.at[rows, loop.length].set(loop.last),
            length=loop.length + 1,
            cache=cache,
        )

    def drop_older_half(loop):
        """Make room in the rows that are full, by reading their newer half into an empty cache."""
        full = loop.length == size
        window = jnp.where(full[:, None], jnp.roll(loop.window, kept - size, axis=1), loop.window)
        empty = decoder.init_cache(batch)
        reread = decoder.extend(empty, window[:, :kept])[1] if kept else empty

        def where_full(new, old):
            return jnp.where(full.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        length, cache = jax.tree.map(where_full, (jnp.full(batch, kept), reread), (loop.length, loop.cache))
        return loop._replace(window=window, length=length, cache=cache)

    def read_until_full(loop):
        loop = jax.lax.while_loop(lambda loop: unfinished(loop) & (loop.length < size).all(), read_token, loop)
        return jax.lax.cond(unfinished(loop), drop_older_half, lambda same: same, loop)

    cache = decoder.init_cache(batch)
    if prompts.shape[1] > 1:
        cache = decoder.extend(cache, prompts, lengths - 1)[1]  # the loop reads the last token
    start = _Loop(
        drawn=jnp.int32(0),
        tokens=jnp.full((batch, max_new_tokens), ENDED, jnp.int32),
        last=prompts[rows, lengths - 1],
        ended=jnp.zeros(batch, bool),
        window=jnp.pad(prompts, ((0, 0), (0, size - prompts.shape[1]))),
        length=lengths - 1,
        cache=cache,
    )
    # If no row can become full, rereading is not compiled. Without a limit, writes past the window are dropped.
    return jax.lax.while_loop(unfinished, read_until_full if limited else read_token, start).tokens
