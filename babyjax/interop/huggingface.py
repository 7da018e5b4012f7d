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

from babyjax.config import BabyGPTConfig
from babyjax.data.documents import END_OF_TEXT
from babyjax.data.subwords import tokenizer_json
from babyjax.data.tokenizer import FILE as TOKENIZER
from babyjax.data.tokenizer import Tokenizer, read_tokenizer
from babyjax.errors import ConfigError, DataError
from babyjax.files import new_folder, read_text
from babyjax.interop.safetensors import SINGLE, Tensors, write_safetensors
from babyjax.models.babygpt import BabyGPT
from babyjax.text import truncated
from babyjax.trees import map_named, named_arrays

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
MAX_CONFIG = 1 << 22
POSITIONS, GPT2_POSITIONS = "position_embedding/embedding", 1024
DEFAULT_BLOCK = 1024  # of a model that could read more

ACTIVATIONS = {"relu": "relu", "relu2": "relu2", "gelu_new": "gelu", "silu": "silu"}  # theirs: ours
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}
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
ALIASES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
FUSED = ("blocks/attention/query", "blocks/attention/key", "blocks/attention/value")
# What old files hold besides parameters.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def load_huggingface(path: str | Path, block_size: int | None = None) -> tuple[BabyGPT, Tokenizer]:
    """Load the model and the tokenizer of a Hugging Face directory, in float32.

    `block_size` limits the context (default: that of config.json, or 1,024 if positions are rotary and it is longer).

    Raises: DataError if a file is missing, damaged or does not fit the others, ConfigError if the architecture has what
    `BabyGPT` has not.
    """
    folder = Path(path)
    content = _read_json(folder / CONFIG)
    config = _read_config(content, folder / CONFIG, block_size)
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
    end = tokenizer.end_of_text
    config = huggingface_config(model) | {"eos_token_id": end}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.block_size,
    } | ({} if end is None else {"eos_token": END_OF_TEXT})
    with new_folder(Path(path)) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / TOKENIZER).write_text(tokenizer_json(tokenizer), encoding="utf-8")
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        write_safetensors(folder / SINGLE, _their_arrays(model))


def huggingface_config(model: BabyGPT) -> dict[str, Any]:
    """Return the content of config.json. Raises: ConfigError naming the idea that no class has."""
    config, family = model.config, _family(model.config)
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    common = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": "float32",
    }
    if family == "gpt2":
        return common | {
            "n_positions": config.block_size,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.hidden_width,
            "activation_function": activation,
            "layer_norm_epsilon": config.norm_eps,
            "attn_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "embd_pdrop": 0.0,
        }
    rest = {
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden_width,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": activation,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.block_size,
        "rope_theta": config.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "attention_dropout": config.dropout,
    }
    if family == "llama":
        rest |= {"attention_bias": config.bias or config.qkv_bias, "mlp_bias": config.bias}
    if family == "qwen3":
        rest |= {"attention_bias": False}
    return common | rest


def _family(config: BabyGPTConfig) -> str:
    """Return the family whose class computes what a config describes. Raises: ConfigError naming what none has."""
    default_size = config.n_embd / config.n_head
    blocks = {
        "a network without blocks": config.n_layer > 0,
        "blocks without residual connections": config.residual,
        "blocks without a feed-forward": config.feed_forward > 0,
        "blocks without output projections": config.projection,
        "a network without norms": config.norm != "none",
    }
    gpt2 = {
        f"positions that are {config.position} with layer norm": config.position == "learned",
        "layer norm without biases": config.bias,
        "layer norm with a gated feed-forward": not config.gated,
        "layer norm with heads that share keys and values": config.kv_heads == config.n_head,
        "layer norm with heads of another size than n_embd over n_head": config.head_size in (None, default_size),
        "layer norm with norms of queries and keys": not config.qk_norm,
    }
    llama = {
        f"positions that are {config.position} with RMSNorm": config.position == "rotary",
        "RMSNorm with a feed-forward that is not gated": config.gated,
        "norms of queries and keys beside biases": not (config.qk_norm and (config.bias or config.qkv_bias)),
    }
    head = {
        "a bound on the logits (model.logit_cap)": not config.logit_cap,
        "a bias in the head (model.head_bias=true)": not config.head_bias,
    }
    for idea, there in (blocks | (gpt2 if config.norm == "layer" else llama) | head).items():
        if not there:
            raise ConfigError(f"none of {', '.join(CLASSES.values())} has {idea}")
    if config.norm == "layer":
        return "gpt2"
    if config.qk_norm:
        return "qwen3"
    plain = config.qkv_bias and not config.bias and config.head_size in (None, default_size)
    return "qwen2" if plain else "llama"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, MAX_CONFIG))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a table of options")
    return content


def _read_config(content: dict[str, Any], path: Path, block_size: int | None) -> BabyGPTConfig:
    """Return the config that config.json means.

    Raises: DataError if a value is missing, ConfigError if `BabyGPT` has no such thing.
    """
    family = content.get("model_type")
    if not isinstance(family, str) or family not in CLASSES:
        raise ConfigError(f"{path} describes a model of type {truncated(family)}; supported are {', '.join(CLASSES)}")

    def size(name: str, default: int | None = None) -> int:
        value = content.get(name, content.get(ALIASES.get(name, name)) if family == "gpt2" else None)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 2e9:
            raise DataError(f"{path} has {name}={truncated(value)}; expected a positive integer")
        return value

    def refuse(present: bool, what: str) -> None:
        if present:
            raise ConfigError(f"{path} describes {what}, which BabyGPT does not have")

    refuse("quantization_config" in content, "quantized weights")
    hidden_act = content.get("activation_function" if family == "gpt2" else "hidden_act")
    hidden_act = ("gelu_new" if family == "gpt2" else "silu") if hidden_act is None else hidden_act
    activation = SYNONYMS.get(str(hidden_act), str(hidden_act))
    refuse(activation not in ACTIVATIONS, f"the activation {truncated(hidden_act)}")
    common = {
        "activation": ACTIVATIONS[activation],
        "residual": True,
        "projection": True,
        "head_bias": False,
        "initialization": "gpt2",
        "vocab_size": size("vocab_size"),
    }
    if family == "gpt2":
        refuse(content.get("scale_attn_weights") is False, "attention that is not scaled")
        refuse(bool(content.get("scale_attn_by_inverse_layer_idx")), "attention scaled by layer")
        refuse(bool(content.get("add_cross_attention")), "cross-attention")
        width, longest = size("n_embd"), size("n_positions", GPT2_POSITIONS)
        if block_size is not None and block_size > longest:
            raise ConfigError(f"block_size={block_size} is more than the {longest} positions this model has learned")
        return BabyGPTConfig(
            **common,
            n_embd=width,
            block_size=block_size or longest,
            n_layer=size("n_layer"),
            n_head=size("n_head"),
            feed_forward=size("n_inner", 4 * width) / width,
            position="learned",
            norm="layer",
            norm_eps=content.get("layer_norm_epsilon", 1e-5),
            qkv_bias=True,
            tied=content.get("tie_word_embeddings", True),
        )
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise DataError(f"{path} has rope_parameters={truncated(rope)}; expected a table")
    kind = rope.get("rope_type", rope.get("type", "default"))
    refuse(kind != "default", f"scaled rotary positions ({truncated(kind)})")
    refuse(any(isinstance(value, dict) for value in rope.values()), "rotary positions that differ by layer")
    refuse((content.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1) != 1, "partly rotary heads")
    layers = content.get("layer_types") or []
    full = isinstance(layers, list) and all(layer == "full_attention" for layer in layers)
    refuse(bool(content.get("use_sliding_window")) or not full, "attention in a sliding window")
    theta = rope.get("rope_theta", content.get("rope_theta", 1e4))
    width, heads = size("hidden_size"), size("num_attention_heads")
    kv_heads = size("num_key_value_heads", heads)
    head_size = size("head_dim", 128 if family == "qwen3" else max(1, width // heads))
    attention_bias = bool(content.get("attention_bias")) if family != "qwen2" else False
    refuse(family == "qwen3" and attention_bias, "attention with biases and norms of queries and keys")
    return BabyGPTConfig(
        **common,
        n_embd=width,
        block_size=block_size or min(size("max_position_embeddings"), DEFAULT_BLOCK),
        n_layer=size("num_hidden_layers"),
        n_head=heads,
        n_kv_head=None if kv_heads == heads else kv_heads,
        head_size=None if head_size * heads == width else head_size,
        qk_norm=family == "qwen3",
        feed_forward=size("intermediate_size") / width,
        gated=True,
        position="rotary",
        rotary_base=theta,
        norm="rms",
        norm_eps=content.get("rms_norm_eps", 1e-6),
        bias=attention_bias or (family == "llama" and bool(content.get("mlp_bias"))),
        qkv_bias=attention_bias or family == "qwen2",
        tied=content.get("tie_word_embeddings", False),
    )


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
    content = huggingface_config(model)
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
