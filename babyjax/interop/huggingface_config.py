"""The config.json of Hugging Face and the `BabyGPTConfig` that means the same: GPT-2, Llama, Qwen2 and Qwen3."""

import json
from pathlib import Path
from typing import Any

from babyjax.config import BabyGPTConfig
from babyjax.errors import ConfigError, DataError
from babyjax.files import read_text
from babyjax.text import truncated

MAX_BYTES = 1 << 22
GPT2_POSITIONS = 1024
DEFAULT_BLOCK = 1024  # of a model that could read more

ACTIVATIONS = {"relu": "relu", "relu2": "relu2", "gelu_new": "gelu", "silu": "silu"}  # theirs: ours
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}
ALIASES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def config_to_json(config: BabyGPTConfig, vocab_size: int) -> dict[str, Any]:
    """Return the content of config.json. Raises: ConfigError naming the idea that no class has."""
    family = _family(config)
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    common = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": vocab_size,
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, MAX_BYTES))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a table of options")
    return content


def config_from_json(content: dict[str, Any], path: Path, block_size: int | None) -> BabyGPTConfig:
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
