"""Models as Hugging Face directories, in both directions: GPT-2, Llama, Qwen2 and Qwen3.

A directory has config.json, the weights as safetensors, and tokenizer.json. Their classes compute what `BabyGPT` does
with certain options, so a model moves by renaming its arrays: no code of theirs or ours is part of a directory.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from babyjax.data.documents import END_OF_TEXT
from babyjax.data.subwords import tokenizer_json
from babyjax.data.tokenizer import FILE as TOKENIZER
from babyjax.data.tokenizer import Tokenizer, read_tokenizer
from babyjax.errors import ConfigError, DataError
from babyjax.files import new_folder
from babyjax.interop.huggingface_config import ALIASES, GPT2_POSITIONS, config_from_json, config_to_json, read_json
from babyjax.interop.safetensors import SINGLE, Tensors, write_safetensors
from babyjax.models.babygpt import BabyGPT
from babyjax.text import truncated
from babyjax.trees import map_named, named_arrays

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
POSITIONS = "position_embedding/embedding"
# Ours: theirs. {} is the number of a block.
GPT2_NAMES = {
    "token_embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "blocks/attention_norm": "transformer.h.{}.ln_1",
    "blocks/attention/projection": "transformer.h.{}.attn.c_proj",
    "blocks/feed_forward_norm": "transformer.h.{}.ln_2",
    "blocks/feed_forward/hidden": "transformer.h.{}.mlp.c_fc",
    "blocks/feed_forward/projection": "transformer.h.{}.mlp.c_proj",
    "norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
GPT2_FUSED = "transformer.h.{}.attn.c_attn"  # queries, keys and values side by side
LLAMA_NAMES = {
    "token_embedding": "model.embed_tokens",
    "blocks/attention_norm": "model.layers.{}.input_layernorm",
    "blocks/attention/query": "model.layers.{}.self_attn.q_proj",
    "blocks/attention/key": "model.layers.{}.self_attn.k_proj",
    "blocks/attention/value": "model.layers.{}.self_attn.v_proj",
    "blocks/attention/query_norm": "model.layers.{}.self_attn.q_norm",
    "blocks/attention/key_norm": "model.layers.{}.self_attn.k_norm",
    "blocks/attention/projection": "model.layers.{}.self_attn.o_proj",
    "blocks/feed_forward_norm": "model.layers.{}.post_attention_layernorm",
    "blocks/feed_forward/gate": "model.layers.{}.mlp.gate_proj",
    "blocks/feed_forward/hidden": "model.layers.{}.mlp.up_proj",
    "blocks/feed_forward/projection": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "lm_head": "lm_head",
}
FUSED = ("blocks/attention/query", "blocks/attention/key", "blocks/attention/value")
# What old files hold besides parameters.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def load_huggingface(path: str | Path, block_size: int | None = None) -> tuple[BabyGPT, Tokenizer]:
    """Load the model and the tokenizer of a Hugging Face directory, in float32.

    `block_size` limits the context (default: that of config.json, or 1,024 if positions are rotary and it is longer).

    Raises: DataError if a file is missing, damaged or does not fit the others, ConfigError if the architecture has what
    `BabyGPT` has not.
    """
    folder = Path(path)
    content = read_json(folder / CONFIG)
    config = config_from_json(content, folder / CONFIG, block_size)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    assert config.vocab_size is not None
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{folder} has {tokenizer.vocab_size:,} tokens in its tokenizer but only {config.vocab_size:,} in its model"
        )
    shapes = jax.eval_shape(partial(BabyGPT, config, config.vocab_size), jax.random.key(0))
    with Tensors(folder) as tensors:
        arrays = _read_arrays(tensors, shapes, content, folder)
    return map_named(lambda name, _: jnp.asarray(arrays.pop(name)), shapes), tokenizer


def save_huggingface(model: BabyGPT, tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a model and its tokenizer to a folder that `transformers` loads: config.json, model.safetensors, ...

    Raises: ConfigError naming the idea that none of the classes has, DataError if the folder is not empty, OSError.
    """
    with new_folder(Path(path)) as folder:
        write_huggingface(model, tokenizer, folder)


def write_huggingface(model: BabyGPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write what `save_huggingface` does into a folder that is there. Raises: ConfigError, OSError."""
    if not isinstance(model, BabyGPT):
        raise ConfigError(f"only networks of the ladder have a Hugging Face class, not a {type(model).__name__}")
    end = tokenizer.end_of_text
    config = config_to_json(model.config, model.vocab_size) | {"eos_token_id": end}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.block_size,
    } | ({} if end is None else {"eos_token": END_OF_TEXT})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / TOKENIZER).write_text(tokenizer_json(tokenizer), encoding="utf-8")
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    write_safetensors(folder / SINGLE, _their_arrays(model))


def _biased(content: dict[str, Any]) -> set[str]:
    """Return the modules in blocks that have a bias in the class of a config.json."""
    family, attention = content["model_type"], bool(content.get("attention_bias"))
    if family == "gpt2":
        return {name for name in GPT2_NAMES if name.startswith("blocks/")} | set(FUSED)
    biased: set[str] = set(FUSED) if attention or family == "qwen2" else set()
    if attention and family != "qwen2":
        biased.add("blocks/attention/projection")
    if family == "llama" and content.get("mlp_bias"):
        biased |= {f"blocks/feed_forward/{name}" for name in ("gate", "hidden", "projection")}
    return biased


def _their_name(family: str, name: str) -> str:
    """Return the name of one of our arrays in a family; {} is the number of a block."""
    module, _, leaf = name.rpartition("/")
    names = GPT2_NAMES | dict.fromkeys(FUSED, GPT2_FUSED) if family == "gpt2" else LLAMA_NAMES
    return f"{names[module]}.{'bias' if leaf == 'bias' else 'weight'}"


def _transposed(family: str, name: str) -> bool:
    """Whether a matrix of ours is stored transposed: all but those of GPT-2's blocks."""
    return name.endswith("kernel") and not (family == "gpt2" and name.startswith("blocks/"))


def _read_arrays(tensors: Tensors, shapes: BabyGPT, content: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a model by our names. Raises: DataError if one is missing, of another shape, or left over."""
    family, biased, width = content["model_type"], _biased(content), shapes.config.n_embd
    positions = content.get("n_positions", content.get(ALIASES["n_positions"])) or GPT2_POSITIONS
    prefix = "transformer." if family == "gpt2" else "model."
    bare = not any(name.startswith(prefix) for name in tensors)  # as on the hub: gpt2
    unread = {name for name in tensors if not name.endswith(BUFFERS)}
    if shapes.config.tied:
        unread.discard("lm_head.weight")

    def stored(name: str, theirs: str, shape: tuple[int, ...]) -> str:
        """Return the name an array has in the file, if it is there with the shape that is meant."""
        theirs = theirs.removeprefix(prefix) if bare else theirs
        if name == POSITIONS:  # of which a shorter block uses the first
            shape = (max(shape[0], positions), width)
        fused = family == "gpt2" and name.startswith(FUSED)
        expected = (*shape[:-1], 3 * shape[-1]) if fused else shape[:: -1 if _transposed(family, name) else 1]
        if theirs not in tensors:
            raise DataError(f"{folder} lacks the array {theirs}")
        if (found := tensors.shape(theirs)) != expected:
            raise DataError(f"{folder} has {theirs} of shape {list(found)}; config.json means {list(expected)}")
        unread.discard(theirs)
        return theirs

    def read(name: str, theirs: str) -> np.ndarray:
        array = tensors.read(theirs)
        if family == "gpt2" and name.startswith(FUSED):
            part = FUSED.index(name.rpartition("/")[0])
            return array[..., part * width : (part + 1) * width]
        return array.T if _transposed(family, name) else array

    # All names and shapes are checked before anything is allocated: config.json may mean any size.
    sources: dict[str, list[str]] = {}
    for name, leaf in named_arrays(shapes).items():
        theirs = _their_name(family, name)
        if not name.startswith("blocks/"):
            sources[name] = [stored(name, theirs, leaf.shape)]
        elif not name.endswith("bias") or name.rpartition("/")[0] in biased:
            sources[name] = [stored(name, theirs.format(index), leaf.shape[1:]) for index in range(leaf.shape[0])]
    if unread:
        raise DataError(f"{folder} has the array {truncated(min(unread))}, which config.json does not mean")
    arrays = {}
    for name, leaf in named_arrays(shapes).items():
        if not name.startswith("blocks/"):
            arrays[name] = read(name, *sources[name])[: leaf.shape[0]]
        else:
            arrays[name] = np.zeros(leaf.shape, np.float32)
            for layer, theirs in zip(arrays[name], sources.get(name, ()), strict=False):
                layer[...] = read(name, theirs)
    return arrays


def _their_arrays(model: BabyGPT) -> dict[str, list[np.ndarray]]:
    """Return the parts of the arrays of a model by the names of its Hugging Face class, without a copy."""
    content = config_to_json(model.config, model.vocab_size)
    family = content["model_type"]
    arrays = {name: [np.asarray(leaf)] for name, leaf in named_arrays(model).items()}
    for module in sorted(_biased(content)):
        if f"{module}/bias" not in arrays:
            (kernel,) = arrays[f"{module}/kernel"]
            arrays[f"{module}/bias"] = [np.zeros((len(kernel), kernel.shape[-1]), np.float32)]
    if family == "gpt2":
        for leaf in ("kernel", "bias"):
            arrays[f"{FUSED[0]}/{leaf}"] = [part for module in FUSED for part in arrays.pop(f"{module}/{leaf}")]
    theirs = {}
    for name, parts in arrays.items():
        their_name, turned = _their_name(family, name), _transposed(family, name)
        if not name.startswith("blocks/"):
            theirs[their_name] = [part.T if turned else part for part in parts]
        else:
            for index, layer in enumerate(zip(*parts, strict=True)):
                theirs[their_name.format(index)] = [part.T if turned else part for part in layer]
    return theirs
