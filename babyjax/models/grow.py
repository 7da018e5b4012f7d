"""Growing: a larger network of the ladder that starts as the function a trained smaller one is.

Most rungs have a point of their parameters, stated in `grow`, at which they are the rung below; where one has none, the
error says why. A wider network of copies follows Net2Net (Chen et al. 2016).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from babyjax.errors import ConfigError
from babyjax.models import make_model
from babyjax.models.babygpt import BabyGPT
from babyjax.schema import BabyGPTConfig
from babyjax.trees import map_named, named_arrays

Arrays = dict[str, Array]


def grow(model: nnx.Module, to: str | BabyGPTConfig, key: Key[Array, ""] | None = None) -> BabyGPT:
    """The network `to` describes, a preset's name or options, at a point where its logits are those of `model`,
    to the precision of the products (`dtype`).

    - A position embedding starts at 0; rows for longer blocks are new.
    - Added blocks, feed-forwards, heads and hidden units are silent: the projection adding them to the residual is 0.
      Without a projection the values are 0, and the whole feed-forward, which then stays so: ReLU has no slope there.
    - An added projection starts as the identity.
    - A feed-forward behind one block without residual starts as the identity: its bias shifts all it can read to where
      ReLU is the identity, and the bias of the head takes that back.
    - A wider embedding is copies of the old. What reads them reads random parts that add up to what read the old one.

    Everything else is the random start of `key` (default: seed 0). Raises `ConfigError` where there is no such point.
    """
    if not isinstance(model, BabyGPT):
        raise ConfigError(f"only networks of the ladder grow, not a {type(model).__name__}")
    config = _preset(to) if isinstance(to, str) else to
    key = jax.random.key(0) if key is None else key
    make = partial(make_model, config, model.token_embedding.embedding.shape[0], key)
    if obstacle := _obstacle(_Ideas.of(model), _Ideas.of(jax.eval_shape(make))):
        raise ConfigError(f"no network of model={config.name} computes what this one does: {obstacle}")
    start = make()
    assert isinstance(start, BabyGPT)
    old, new = named_arrays(model), named_arrays(start)
    copies = start.token_embedding.embedding.shape[1] // model.token_embedding.embedding.shape[1]
    grown = new | {name: _copied(array, copies) for name, array in old.items() if "blocks" not in name}
    if "lm_head/kernel" in new:
        grown["lm_head/kernel"] = _shared(old["lm_head/kernel"], new["lm_head/kernel"])
    for name in ("lm_head/bias", "lm_head_bias"):
        if name in new:
            grown[name] = old.get(name, jnp.zeros_like(new[name]))
    if "position_embedding/embedding" in new:
        table = new["position_embedding/embedding"]
        before = grown["position_embedding/embedding"] if "position_embedding/embedding" in old else 0 * table
        grown["position_embedding/embedding"] = table.at[: len(before)].set(before)
    if start.blocks is not None:
        blocks = jax.vmap(_silent)(_of_blocks(new))
        if model.blocks is not None:
            first = {name: array[: model.n_layer] for name, array in _of_blocks(new).items()}
            heads = model.n_head, start.n_head
            same = jax.vmap(lambda block, fresh: _grown_block(block, fresh, *heads))(_of_blocks(old), first)
            blocks = {name: array.at[: model.n_layer].set(same[name]) for name, array in blocks.items()}
        grown |= {f"blocks/{name}": array for name, array in blocks.items()}
        if start.blocks.feed_forward and not start.blocks.residual and "blocks/feed_forward/hidden/kernel" not in old:
            grown |= _identity_feed_forward(grown)
    return map_named(lambda name, _: grown[name], start)


def _preset(name: str) -> BabyGPTConfig:
    from babyjax.config import load_config

    config = load_config([f"model={name}"]).model
    if not isinstance(config, BabyGPTConfig):
        raise ConfigError(f"model={name} is not a network of the ladder")
    return config


class _Ideas(NamedTuple):
    """What of a network decides whether another can compute the same."""

    vocab_size: int
    n_embd: int
    context: int
    position: bool
    n_layer: int
    n_head: int
    hidden: int
    activation: str
    residual: bool
    projection: bool
    norm: bool
    bias: bool
    attention_bias: bool
    tied: bool

    @classmethod
    def of(cls, model: BabyGPT) -> "_Ideas":
        block, head = model.blocks, model.lm_head
        feed_forward = block.feed_forward if block else None
        vocab_size, n_embd = model.token_embedding.embedding.shape
        return cls(
            vocab_size,
            n_embd,
            context=model.receptive_field,
            position=model.position_embedding is not None,
            n_layer=model.n_layer,
            n_head=model.n_head,
            hidden=feed_forward.hidden.kernel.shape[-1] if feed_forward else 0,
            activation=feed_forward.activation if feed_forward else "",
            residual=block is not None and block.residual,
            projection=block is not None and block.attention.projection is not None,
            norm=model.norm is not None,
            bias=(model.lm_head_bias if head is None else head.bias) is not None,
            attention_bias=block is not None and block.attention.query_key_value.bias is not None,
            tied=head is None,
        )


def _obstacle(old: _Ideas, new: _Ideas) -> str | None:
    """Why no network of the ideas `new` computes what one of `old` does, or None where one does."""
    for name in ("context", "position", "n_layer", "n_head", "hidden", "projection", "norm", "bias", "attention_bias"):
        if getattr(old, name) > getattr(new, name) and (old.n_layer or name != "n_head"):
            return f"it would have less, {name} {getattr(new, name)} where this one has {getattr(old, name)}"
    if old.vocab_size != new.vocab_size:
        return f"it has room for {new.vocab_size:,} tokens, this one for {old.vocab_size:,}"
    if not old.n_embd or new.n_embd % old.n_embd:
        return f"its width of {new.n_embd} is no multiple of {old.n_embd}"
    wider = new.n_embd > old.n_embd
    if old.tied != new.tied or (new.tied and wider):
        return "a tied head is the embedding, and no other head or width"
    if new.norm and not old.norm:
        return "layer norm takes mean and length from what the head reads, which this one's head sees"
    if old.n_layer and old.residual != new.residual:
        return "a block that adds to what it reads replaces it only in the limit of large values"
    if new.n_layer > old.n_layer and not new.residual:
        return "attention mixes in every token it sees, and without a residual nothing passes by it"
    if not old.n_layer:
        return None
    sizes = (old.n_embd // old.n_head, new.n_embd // new.n_head)
    if sizes[0] > sizes[1]:
        return f"its heads of width {sizes[1]} score tokens by matrices of that rank, this one's by rank {sizes[0]}"
    if not new.projection and (wider or old.n_head != new.n_head):
        return "without a projection what the heads say has its fixed place"
    if old.hidden and old.activation != new.activation:
        return f"{new.activation} is not {old.activation}"
    only_replaced = new.hidden and not old.hidden and not new.residual
    linear_head = new.bias and not (new.norm or new.tied)
    if only_replaced and (new.n_layer > 1 or new.projection or new.activation != "relu" or not linear_head):
        return (
            "a feed-forward that replaces what it reads is the identity only of ReLU and before v1's head with a bias"
        )
    return None


def _of_blocks(arrays: Arrays) -> Arrays:
    return {name.removeprefix("blocks/"): array for name, array in arrays.items() if name.startswith("blocks/")}


def _copied(array: Array, copies: int) -> Array:
    """What an embedding, a norm or a projection writes, as often as the wider embedding holds it; no head's bias."""
    return jnp.concatenate([array] * copies, axis=-1)


def _shared(kernel: Float[Array, "D E"], start: Float[Array, "mD E"]) -> Float[Array, "mD E"]:
    """A matrix that makes of m copies what `kernel` makes of one: random parts of it, as `start` is, one a copy."""
    parts = start.reshape(-1, *kernel.shape)
    return (parts - parts.mean(axis=0) + kernel / len(parts)).reshape(start.shape)


def _silent(block: Arrays) -> Arrays:
    """A block that adds nothing to its residual."""
    if "attention/projection/kernel" in block:
        return {name: array * ("projection" not in name) for name, array in block.items()}
    width = block["attention/query_key_value/kernel"].shape[0]
    values = {name: array.at[..., 2 * width :].set(0) for name, array in block.items() if "query_key_value" in name}
    return block | values | {name: 0 * array for name, array in block.items() if name.startswith("feed_forward/")}


def _grown_block(old: Arrays, new: Arrays, heads: int, new_heads: int) -> Arrays:
    """The block `new`, at random, made to compute what `old` does on copies of what that reads."""
    width, new_width = (block["attention/query_key_value/kernel"].shape[0] for block in (old, new))
    size, new_size, copies = width // heads, new_width // new_heads, new_width // width
    grown = _silent(new) | {name: _copied(array, copies) for name, array in old.items() if "norm" in name}

    # The old heads come first, each in the first of its new head's places. Scores are divided by sqrt(size).
    scale = (new_size / size) ** 0.5
    for part in ("kernel", "bias"):
        if (name := f"attention/query_key_value/{part}") in new:
            start = new[name].reshape(-1, 3, new_heads, new_size)
            before = old.get(name, jnp.zeros(3 * width)).reshape(-1, 3 * width)
            place = start[:, :, :heads, :size].reshape(-1, 3 * width)
            before = (_shared(before, place) if part == "kernel" else before).reshape(-1, 3, heads, size)
            start = start.at[:, 0, :heads].set(0).at[:, :, :heads, :size].set(before.at[:, 0].multiply(scale))
            grown[name] = start.reshape(new[name].shape)
    if "attention/projection/kernel" in new:
        back = old.get("attention/projection/kernel", jnp.eye(width))
        place = jnp.zeros((new_heads, new_size, new_width))
        place = place.at[:heads, :size].set(_copied(back.reshape(heads, size, width), copies))
        grown["attention/projection/kernel"] = place.reshape(new_width, new_width)
        grown["attention/projection/bias"] = _copied(old.get("attention/projection/bias", jnp.zeros(width)), copies)

    if "feed_forward/hidden/kernel" in old:
        into, hidden = old["feed_forward/hidden/kernel"], old["feed_forward/hidden/bias"]
        start, units = new["feed_forward/hidden/kernel"], len(hidden)
        grown["feed_forward/hidden/kernel"] = start.at[:, :units].set(_shared(into, start[:, :units]))
        grown["feed_forward/hidden/bias"] = new["feed_forward/hidden/bias"].at[:units].set(hidden)
        if "feed_forward/projection/kernel" in new:
            back = old.get("feed_forward/projection/kernel", jnp.eye(width))
            place = jnp.zeros_like(new["feed_forward/projection/kernel"])
            grown["feed_forward/projection/kernel"] = place.at[:units].set(_copied(back, copies))
            grown["feed_forward/projection/bias"] = _copied(
                old.get("feed_forward/projection/bias", jnp.zeros(width)), copies
            )
    return grown


def _identity_feed_forward(grown: Arrays) -> Arrays:
    """The only block's feed-forward as the identity on all it can read, shifted, and the head's bias that undoes it."""
    x = grown["token_embedding/embedding"][:, None]
    if "position_embedding/embedding" in grown:
        x = x + grown["position_embedding/embedding"]
    width = x.shape[-1]
    layer = {name: array[0] for name, array in _of_blocks(grown).items()}
    values = x @ layer["attention/query_key_value/kernel"][:, 2 * width :]
    if "attention/query_key_value/bias" in layer:
        values = values + layer["attention/query_key_value/bias"][2 * width :]
    # Attention gives a mean of values, so what it says is nowhere below the least of them.
    shift = -values.min(axis=(0, 1))
    return {
        "blocks/feed_forward/hidden/kernel": jnp.eye(width)[None],
        "blocks/feed_forward/hidden/bias": shift[None],
        "lm_head/bias": grown["lm_head/bias"] - shift @ grown["lm_head/kernel"],
    }
