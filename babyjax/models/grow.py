"""A larger network that computes what a smaller one does: `grow(model, to="babygpt-v2-position")`.

Many rungs have parameters at which they equal the rung below: `grow` says which, and its error why others have none.
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
from babyjax.recipes import presets
from babyjax.trees import map_named, named_arrays

Arrays = dict[str, Array]

QUERY, KEY, VALUE = (f"attention/{name}/" for name in ("query", "key", "value"))
HIDDEN, GATE = "feed_forward/hidden/", "feed_forward/gate/"
BACK, UNITS_BACK = "attention/projection/", "feed_forward/projection/"
# What reads the output of each norm.
READERS = {
    "blocks/attention_norm/": [f"blocks/{name}" for name in (QUERY, KEY, VALUE)],
    "blocks/feed_forward_norm/": [f"blocks/{name}" for name in (HIDDEN, GATE)],
    "norm/": ["lm_head/"],
}


def grow(model: LanguageModel, to: str | BabyGPTConfig, key: Key[Array, ""] | None = None) -> BabyGPT:
    """Return a network of the config or preset `to` with the logits of `model`, to the precision of its dtype.

    First the same function in other words, at the same size:

    - Added biases are 0. An untied head is the transposed embedding.
    - RMSNorm of numbers with mean 0 is LayerNorm. What writes to the residual is centered, and the norms' biases move
      into what reads them.
    - An added gate holds the activation, and what it multiplies is 1; gated ReLU with twice the same units is squared
      ReLU.
    - Heads that get keys and values of their own start with copies of the shared ones.

    Then more room:

    - An added position embedding is 0; rows for longer windows are new.
    - Added blocks, heads and feed-forward units are silent: the projection that adds them to the residual is 0.
      Without a projection the values are 0 and the whole feed-forward, which then stays 0: ReLU has no slope there.
    - An added projection is the identity.
    - A feed-forward added behind one block without residual is the identity: its bias shifts every possible input to
      where ReLU is the identity, and the bias of the head takes that back.
    - A wider embedding is copies of the old one. Its readers read random parts that add up to the old reader.

    Everything else is the random initialization of `key` (default: seed 0). A network of the same config stays as it
    is.

    Raises: ConfigError if there are no such parameters.
    """
    if not isinstance(model, BabyGPT):
        raise ConfigError(f"only networks of the ladder can grow, not a {type(model).__name__}")
    config = presets[to] if isinstance(to, str) else to
    if not isinstance(config, BabyGPTConfig):
        raise ConfigError(f"model={to} is not a network of the ladder")
    make = partial(BabyGPT, config, model.vocab_size, jax.random.key(0) if key is None else key)
    shapes = jax.eval_shape(make)
    if jax.tree.structure(shapes) == jax.tree.structure(model) and shapes.vocab_size == model.vocab_size:
        return model
    if obstacle := _obstacle(model, shapes):
        raise ConfigError(f"cannot grow this network: {obstacle}")
    large = make()
    new = named_arrays(large)
    small, old = _restated(model.config, config, named_arrays(model))
    copies = config.n_embd // small.n_embd
    grown = new | {name: jnp.tile(array, copies) for name, array in old.items() if not name.startswith("blocks/")}
    if not config.tied:
        grown["lm_head/kernel"] = _shared(old["lm_head/kernel"], new["lm_head/kernel"])
    for name in ("lm_head/bias", "lm_head_bias"):
        if name in new:
            grown[name] = old[name]
    if config.position == "learned":
        name = "position_embedding/embedding"
        grown[name] = _placed(grown[name], new[name]) if name in old else jnp.zeros_like(new[name])
    if config.n_layer:
        random = _blocks(new)
        blocks = jax.vmap(_silent)(random)
        if layers := small.n_layer:
            first = {name: array[:layers] for name, array in random.items()}
            first = jax.vmap(partial(_grown_block, small, config))(_blocks(old), first)
            blocks = {name: _placed(first[name], array) for name, array in blocks.items()}
        grown |= {f"blocks/{name}": array for name, array in blocks.items()}
        if config.feed_forward and not config.residual and not (layers and small.feed_forward):
            grown |= _identity_feed_forward(grown)
    return map_named(lambda name, _: grown[name], large)


def _sizes(model: BabyGPT) -> dict[str, int]:
    """What a network may have more of after growing, but not less."""
    config = model.config
    sizes = {"n_layer": config.n_layer, "head_bias": config.head_bias}
    if config.n_layer:
        sizes |= {name: getattr(config, name) for name in ("n_head", "projection", "gated", "qkv_bias")}
        sizes["feed-forward width"] = config.hidden_width
        if config.norm != "layer":  # whose biases may move into what reads them
            sizes["bias"] = config.bias
    return {"context_length": model.context_length, **sizes}


def _obstacle(small: BabyGPT, large: BabyGPT) -> str | None:
    """Return why no network like `large` computes what one like `small` does, or None if one does."""
    old, new, more = small.config, large.config, _sizes(large) | {"bias": large.config.bias}
    for name, size in _sizes(small).items():
        if more.get(name, 0) < size:
            return f"{name} would shrink from {size} to {more.get(name, 0)}"
    if small.vocab_size != large.vocab_size:
        return f"it has room for {small.vocab_size:,} tokens, the larger one for {large.vocab_size:,}"
    if not old.n_embd or new.n_embd % old.n_embd:
        return f"n_embd={new.n_embd} is not a multiple of {old.n_embd}"
    wider = new.n_embd > old.n_embd
    if new.tied and (wider or not old.tied):
        return "a tied head is the embedding, so it stays tied only at its n_embd, and no other head becomes tied"
    if old.logit_cap != new.logit_cap:
        return f"its logits are bounded by {old.logit_cap:g}, those of the larger one by {new.logit_cap:g} (0: not)"
    if obstacle := _norm_obstacle(old, new):
        return obstacle
    if old.n_layer and old.residual != new.residual:
        return "a block with a residual replaces its input only in the limit of large weights"
    if new.n_layer > old.n_layer and not new.residual:
        return "an added block mixes in every token it sees, and without a residual no input passes unchanged"
    if old.position != new.position and (old.position != "none" or (new.position == "rotary" and old.n_layer)):
        return f"its positions are {old.position}, not {new.position}; each makes scores that the other has not"
    if not old.n_layer:
        return None
    rotated = old.position == "rotary"
    if rotated and old.rotary_base != new.rotary_base:
        return f"its rotary_base is {old.rotary_base:g}, not {new.rotary_base:g}"
    if old.qk_norm != new.qk_norm:
        return "a norm of queries and keys takes away their length, on which scores depend without it"
    if old.head_width > new.head_width:
        return (
            f"its heads score tokens by matrices of rank {old.head_width}, "
            f"heads of size {new.head_width} only of rank {new.head_width}"
        )
    if old.head_width != new.head_width and (rotated or old.qk_norm):
        return f"rotary positions and norms of queries and keys bind a head to its size of {old.head_width}"
    shared, new_shared = old.n_head // old.kv_heads, new.n_head // new.kv_heads
    if shared % new_shared:
        return f"{new_shared} heads share keys and values, {shared} in this one, and their own may differ"
    if not new.projection and (wider or old.n_head != new.n_head or old.kv_heads != new.kv_heads):
        return "without a projection the output of each head has a fixed place"
    if old.feed_forward and not _same_units(old, new):
        return (
            f"its activation is {old.activation}{' with a gate' * old.gated}, not "
            f"{new.activation}{' with a gate' * new.gated}{' without biases' * (new.gated and not new.bias)}"
        )
    replaces = new.feed_forward and not old.feed_forward and not new.residual
    linear_head = new.head_bias and not (new.norm != "none" or new.tied or new.logit_cap)
    plain = new.activation == "relu" and not new.gated and new.bias
    if replaces and (new.n_layer > 1 or new.projection or not plain or not linear_head):
        return (
            "an added feed-forward without residual is the identity only in a single block with ReLU and no projection,"
            " before a head with a bias, no norm and no tying"
        )
    return None


def _norm_obstacle(old: BabyGPTConfig, new: BabyGPTConfig) -> str | None:
    if old.norm == new.norm == "none":
        return None
    if old.norm == "none":
        return "an added norm removes the length of the head's input, layer norm its mean too, and the head uses them"
    if new.norm == "none" or (old.norm, new.norm) == ("rms", "layer"):
        return f"norm={old.norm} is not norm={new.norm}, which {'does nothing' if new.norm == 'none' else 'centers'}"
    if old.norm_eps != new.norm_eps:
        return f"its norm_eps is {old.norm_eps:g}, not {new.norm_eps:g}"
    if old.norm == new.norm:
        return None if new.bias or not old.bias or new.norm == "rms" else "bias would shrink from True to False"
    if new.tied:
        return "RMSNorm is LayerNorm only if the embedding is centered, and a tied head needs it as it is"
    if old.n_layer and not old.projection:
        return "RMSNorm is LayerNorm only if the residual is centered, which takes projections"
    if old.bias and not (new.head_bias and (not old.n_layer or (new.bias and new.qkv_bias))):
        return "the biases of its layer norms need head_bias=true, and with blocks bias=true and qkv_bias=true"
    return None


def _same_units(old: BabyGPTConfig, new: BabyGPTConfig) -> bool:
    """Whether a feed-forward like `new` can be one like `old`."""
    if old.gated == new.gated:
        return old.activation == new.activation
    squared = (old.activation, new.activation) == ("relu2", "relu")
    return new.gated and (squared or (old.activation == new.activation and new.bias))


def _restated(old: BabyGPTConfig, new: BabyGPTConfig, arrays: Arrays) -> tuple[BabyGPTConfig, Arrays]:
    """Return the config and the arrays of the same function and sizes, in the ways of `new`."""
    if old.tied and not new.tied:
        arrays = arrays | {"lm_head/kernel": arrays["token_embedding/embedding"].T}
        if old.head_bias:
            arrays["lm_head/bias"] = arrays.pop("lm_head_bias")
    if old.norm == "layer" and new.norm == "rms":
        arrays = _centered(arrays)
    if new.gated and not old.gated and old.feed_forward:
        units = {name: array for name, array in arrays.items() if name.startswith(f"blocks/{HIDDEN}")}
        arrays = arrays | {name.replace(HIDDEN, GATE): array for name, array in units.items()}
        if old.activation == new.activation:
            kernel = units[f"blocks/{HIDDEN}kernel"]
            arrays[f"blocks/{HIDDEN}kernel"] = 0 * kernel
            arrays[f"blocks/{HIDDEN}bias"] = jnp.ones((len(kernel), old.hidden_width))
    kv_heads = old.kv_heads
    if old.n_layer:
        kv_heads = old.n_head * new.kv_heads // new.n_head
        for name, array in arrays.items():
            if name.startswith((f"blocks/{KEY}", f"blocks/{VALUE}")):
                heads = array.reshape(*array.shape[:-1], old.kv_heads, old.head_width)
                heads = jnp.repeat(heads, kv_heads // old.kv_heads, axis=-2)
                arrays = arrays | {name: heads.reshape(*array.shape[:-1], -1)}
    ways = ("tied", "norm", "activation", "gated", "bias", "qkv_bias", "head_bias")
    restated = old.replace(n_kv_head=kv_heads, **{name: getattr(new, name) for name in ways})
    shapes = named_arrays(
        jax.eval_shape(lambda: BabyGPT(restated, len(arrays["token_embedding/embedding"]), jax.random.key(0)))
    )
    return restated, {name: arrays.get(name, jnp.zeros(leaf.shape, leaf.dtype)) for name, leaf in shapes.items()}


def _centered(arrays: Arrays) -> Arrays:
    """Center what is written to the residual, and move the biases of layer norms into what reads them."""
    writers = ("token_embedding/", "position_embedding/", f"blocks/{BACK}", f"blocks/{UNITS_BACK}")
    arrays = {
        name: array - array.mean(axis=-1, keepdims=True) if name.startswith(writers) else array
        for name, array in arrays.items()
    }
    for norm, readers in READERS.items():
        bias = arrays.pop(f"{norm}bias", None)
        for reader in readers:
            if bias is not None and f"{reader}kernel" in arrays:
                read = (bias[..., None, :] @ arrays[f"{reader}kernel"])[..., 0, :]
                arrays[f"{reader}bias"] = arrays.get(f"{reader}bias", 0) + read
    return arrays


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
    quiet = (BACK, UNITS_BACK) if BACK + "kernel" in block else (VALUE, "feed_forward/")
    return {name: 0 * array if name.startswith(quiet) else array for name, array in block.items()}


def _grown_block(config: BabyGPTConfig, new_config: BabyGPTConfig, old: Arrays, new: Arrays) -> Arrays:
    """Change the random block `new` to compute on copies what `old` computes. Old heads and units come first."""
    width, heads, size = config.n_embd, config.n_head, config.head_width
    new_heads, new_size, copies = new_config.n_head, new_config.head_width, new_config.n_embd // width
    grown = _silent(new)
    for name in (name for name in old if "_norm/" in name):  # in the attention they are of heads, which stay as wide
        grown[name] = old[name] if name.startswith("attention/") else jnp.tile(old[name], copies)

    def projected(name: str, random_rows: tuple[int, ...], rows: tuple[int, ...]) -> Arrays:
        """A projection, the identity if there was none, that adds to every copy and nothing from new rows."""
        kernel = jnp.tile(old.get(name + "kernel", jnp.eye(width)), copies).reshape(*rows, -1)
        empty = jnp.zeros((*random_rows, kernel.shape[-1]))
        back = {name + "kernel": _placed(kernel, empty).reshape(new[name + "kernel"].shape)}
        if name + "bias" in new:
            back[name + "bias"] = jnp.tile(old.get(name + "bias", jnp.zeros(width)), copies)
        return back

    for part, count, new_count in (
        (QUERY, heads, new_heads),
        (KEY, config.kv_heads, new_config.kv_heads),
        (VALUE, config.kv_heads, new_config.kv_heads),
    ):
        for name in (name for name in old if name.startswith(part)):
            random, known = new[name].reshape(-1, new_count, new_size), old[name].reshape(-1, count * size)
            if name.endswith("kernel"):
                known = _shared(known, random[:, :count, :size].reshape(-1, count * size))
            known = known.reshape(-1, count, size)
            if part == QUERY:
                # A larger head divides its scores by more, and what it has beyond the old size must not add to them.
                known, random = known * (new_size / size) ** 0.5, random.at[:, :count].set(0)
            grown[name] = _placed(known, random).reshape(new[name].shape)
    if new_config.projection:
        grown |= projected(BACK, (new_heads, new_size), (heads, size))
    if config.feed_forward:
        units = config.hidden_width
        for name in (name for name in old if name.startswith((HIDDEN, GATE))):
            known = _shared(old[name], new[name][:, :units]) if name.endswith("kernel") else old[name]
            grown[name] = _placed(known, new[name])
        if new_config.projection:
            grown |= projected(UNITS_BACK, (new_config.hidden_width,), (units,))
    return grown


def _identity_feed_forward(grown: Arrays) -> Arrays:
    """Make the feed-forward of the only block the identity plus a shift, and let the bias of the head take it back."""
    x = grown["token_embedding/embedding"][:, None]
    if "position_embedding/embedding" in grown:
        x = x + grown["position_embedding/embedding"]
    block = {name: array[0] for name, array in _blocks(grown).items()}
    values = x @ block[VALUE + "kernel"] + block.get(VALUE + "bias", 0)
    shift = -values.min(axis=(0, 1))  # attention returns means of values, so never less than the least of them
    return {
        f"blocks/{HIDDEN}kernel": jnp.eye(x.shape[-1])[None],
        f"blocks/{HIDDEN}bias": shift[None],
        "lm_head/bias": grown["lm_head/bias"] - shift @ grown["lm_head/kernel"],
    }
