"""Growing: a larger network of the ladder that starts as the function of a trained smaller one.

Most rungs have parameters at which they equal the rung below: `grow` says which, and its error why others have none.
Widening by copies follows Net2Net (Chen et al. 2016).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from babyjax.config import BabyGPTConfig
from babyjax.errors import ConfigError
from babyjax.models.babygpt import BabyGPT
from babyjax.models.base import LanguageModel
from babyjax.presets import preset
from babyjax.trees import map_named, named_arrays

Arrays = dict[str, Array]

QKV, BACK = "attention/query_key_value/", "attention/projection/"
UNITS, UNITS_BACK = "feed_forward/hidden/", "feed_forward/projection/"


def grow(model: LanguageModel, to: str | BabyGPTConfig, key: Key[Array, ""] | None = None) -> BabyGPT:
    """Return a network of the config or preset `to` with the logits of `model`, to the precision of its dtype.

    - An added position embedding is 0; rows for longer windows are new.
    - Added blocks, heads and feed-forward units are silent: the projection that adds them to the residual is 0.
      Without a projection the values are 0 and the whole feed-forward, which then stays 0: ReLU has no slope there.
    - An added projection is the identity.
    - A feed-forward added behind one block without residual is the identity: its bias shifts every possible input to
      where ReLU is the identity, and the bias of the head takes that back.
    - A wider embedding is copies of the old one. Its readers read random parts that add up to the old reader.

    Everything else is the random initialization of `key` (default: seed 0).

    Raises: ConfigError if there are no such parameters.
    """
    if not isinstance(model, BabyGPT):
        raise ConfigError(f"only networks of the ladder can grow, not a {type(model).__name__}")
    config = preset(to) if isinstance(to, str) else to
    if not isinstance(config, BabyGPTConfig):
        raise ConfigError(f"model={to} is not a network of the ladder")
    make = partial(BabyGPT, config, model.vocab_size, jax.random.key(0) if key is None else key)
    if obstacle := _obstacle(model, jax.eval_shape(make)):
        raise ConfigError(f"cannot grow this network: {obstacle}")
    large = make()
    old, new = named_arrays(model), named_arrays(large)
    copies = config.n_embd // model.config.n_embd
    grown = new | {name: jnp.tile(array, copies) for name, array in old.items() if not name.startswith("blocks/")}
    if not config.tied:
        grown["lm_head/kernel"] = _shared(old["lm_head/kernel"], new["lm_head/kernel"])
    for name in ("lm_head/bias", "lm_head_bias"):
        if name in new:
            grown[name] = old.get(name, jnp.zeros_like(new[name]))
    if config.position:
        name = "position_embedding/embedding"
        grown[name] = _placed(grown[name], new[name]) if name in old else jnp.zeros_like(new[name])
    if config.n_layer:
        random = _blocks(new)
        blocks = jax.vmap(_silent)(random)
        if layers := model.config.n_layer:
            first = {name: array[:layers] for name, array in random.items()}
            first = jax.vmap(partial(_grown_block, model.config, config))(_blocks(old), first)
            blocks = {name: _placed(first[name], array) for name, array in blocks.items()}
        grown |= {f"blocks/{name}": array for name, array in blocks.items()}
        if config.feed_forward and not config.residual and not (layers and model.config.feed_forward):
            grown |= _identity_feed_forward(grown)
    return map_named(lambda name, _: grown[name], large)


def _sizes(model: BabyGPT) -> dict[str, int]:
    """What a network may have more of after growing, but not less."""
    config = model.config
    sizes = {name: getattr(config, name) for name in ("position", "n_layer", "norm", "bias")}
    if config.n_layer:
        sizes |= {name: getattr(config, name) for name in ("n_head", "projection", "attention_bias")}
        sizes["feed-forward width"] = config.feed_forward * config.n_embd
    return {"context_length": model.context_length, **sizes}


def _obstacle(small: BabyGPT, large: BabyGPT) -> str | None:
    """Return why no network like `large` computes what one like `small` does, or None if one does."""
    old, new, less = small.config, large.config, _sizes(large)
    for name, size in _sizes(small).items():
        if less.get(name, 0) < size:
            return f"{name} would shrink from {size} to {less.get(name, 0)}"
    if small.vocab_size != large.vocab_size:
        return f"it has room for {small.vocab_size:,} tokens, the larger one for {large.vocab_size:,}"
    if not old.n_embd or new.n_embd % old.n_embd:
        return f"n_embd={new.n_embd} is not a multiple of {old.n_embd}"
    wider = new.n_embd > old.n_embd
    if old.tied != new.tied or (new.tied and wider):
        return "a tied head is the embedding, so both the tying and n_embd must stay"
    if new.norm and not old.norm:
        return "an added layer norm removes mean and length of the head's input, and its head uses them"
    if old.n_layer and old.residual != new.residual:
        return "a block with a residual replaces its input only in the limit of large weights"
    if new.n_layer > old.n_layer and not new.residual:
        return "an added block mixes in every token it sees, and without a residual no input passes unchanged"
    if not old.n_layer:
        return None
    size, new_size = old.n_embd // old.n_head, new.n_embd // new.n_head
    if size > new_size:
        return f"its heads score tokens by matrices of rank {size}, heads of size {new_size} only of rank {new_size}"
    if not new.projection and (wider or old.n_head != new.n_head):
        return "without a projection the output of each head has a fixed place"
    if old.feed_forward and old.activation != new.activation:
        return f"its activation is {old.activation}, not {new.activation}"
    replaces = new.feed_forward and not old.feed_forward and not new.residual
    linear_head = new.bias and not (new.norm or new.tied)
    if replaces and (new.n_layer > 1 or new.projection or new.activation != "relu" or not linear_head):
        return (
            "an added feed-forward without residual is the identity only in a single block with ReLU and no projection,"
            " before a head with a bias, no norm and no tying"
        )
    return None


def _blocks(arrays: Arrays) -> Arrays:
    return {name.removeprefix("blocks/"): array for name, array in arrays.items() if name.startswith("blocks/")}


def _placed(small: Array, large: Array) -> Array:
    """Put `small` into the first places of `large` along every axis."""
    return large.at[tuple(map(slice, small.shape))].set(small)


def _shared(kernel: Float[Array, "D E"], random: Float[Array, "mD E"]) -> Float[Array, "mD E"]:
    """Return a kernel that makes of m copies what `kernel` makes of one, by m random parts that add up to it."""
    parts = random.reshape(-1, *kernel.shape)
    return (parts - parts.mean(axis=0) + kernel / len(parts)).reshape(random.shape)


def _silent(block: Arrays) -> Arrays:
    """Change a block so that it adds nothing to its residual."""
    if BACK + "kernel" in block:
        return {name: array * ("projection" not in name) for name, array in block.items()}
    width = block[QKV + "kernel"].shape[0]
    values = {name: array.at[..., 2 * width :].set(0) for name, array in block.items() if name.startswith(QKV)}
    return block | values | {name: 0 * array for name, array in block.items() if name.startswith("feed_forward/")}


def _grown_block(config: BabyGPTConfig, new_config: BabyGPTConfig, old: Arrays, new: Arrays) -> Arrays:
    """Change the random block `new` to compute on copies what `old` computes. Old heads and units come first."""
    width, heads, new_heads = config.n_embd, config.n_head, new_config.n_head
    size, new_size, copies = width // heads, new_config.n_embd // new_heads, new_config.n_embd // width
    grown = _silent(new) | {name: jnp.tile(array, copies) for name, array in old.items() if "norm" in name}

    def projected(name: str, random_rows: tuple[int, ...], rows: tuple[int, ...]) -> Arrays:
        """A projection, the identity if there was none, that adds to every copy and nothing from new rows."""
        kernel = jnp.tile(old.get(name + "kernel", jnp.eye(width)), copies).reshape(*rows, -1)
        empty = jnp.zeros((*random_rows, kernel.shape[-1]))
        bias = jnp.tile(old.get(name + "bias", jnp.zeros(width)), copies)
        return {name + "kernel": _placed(kernel, empty).reshape(new[name + "kernel"].shape), name + "bias": bias}

    for name in (name for name in new if name.startswith(QKV)):
        random = new[name].reshape(-1, 3, new_heads, new_size)
        part = old.get(name, jnp.zeros(3 * width)).reshape(-1, 3 * width)
        if name.endswith("kernel"):
            part = _shared(part, random[:, :, :heads, :size].reshape(-1, 3 * width))
        # A larger head divides its scores by more, and what it has beyond the old size must not add to them.
        part = part.reshape(-1, 3, heads, size).at[:, 0].multiply((new_size / size) ** 0.5)
        grown[name] = _placed(part, random.at[:, 0, :heads].set(0)).reshape(new[name].shape)
    if new_config.projection:
        grown |= projected(BACK, (new_heads, new_size), (heads, size))
    if config.feed_forward:
        kernel, random, units = old[UNITS + "kernel"], new[UNITS + "kernel"], old[UNITS + "bias"].shape
        grown[UNITS + "kernel"] = _placed(_shared(kernel, random[:, : units[0]]), random)
        grown[UNITS + "bias"] = _placed(old[UNITS + "bias"], new[UNITS + "bias"])
        if new_config.projection:
            grown |= projected(UNITS_BACK, random.shape[1:], units)
    return grown


def _identity_feed_forward(grown: Arrays) -> Arrays:
    """Make the feed-forward of the only block the identity plus a shift, and let the bias of the head take it back."""
    x = grown["token_embedding/embedding"][:, None]
    if "position_embedding/embedding" in grown:
        x = x + grown["position_embedding/embedding"]
    block = {name: array[0] for name, array in _blocks(grown).items()}
    width = x.shape[-1]
    values = (x @ block[QKV + "kernel"] + block.get(QKV + "bias", 0))[..., 2 * width :]
    shift = -values.min(axis=(0, 1))  # attention returns means of values, so never less than the least of them
    return {
        f"blocks/{UNITS}kernel": jnp.eye(width)[None],
        f"blocks/{UNITS}bias": shift[None],
        "lm_head/bias": grown["lm_head/bias"] - shift @ grown["lm_head/kernel"],
    }
