"""The presets: named combinations of options, one table per group.

A preset names what it starts from, the class of its options or another preset, and what it sets on top. What a preset
sets may belong to other groups; options on the command line have the last word.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from babyjax.config import (
    AdamWConfig,
    BabyGPTConfig,
    BigramConfig,
    CountsConfig,
    DataConfig,
    LionConfig,
    MixtureConfig,
    MuonConfig,
    NGramConfig,
    SGDConfig,
    SyntheticConfig,
    TrainerConfig,
)
from babyjax.schema import Options, unknown

Preset = tuple[type[Options] | str, dict[str, Any]]

# The ladder. Each rung of v2 to v10 adds one idea to the rung above it in this table.
MODELS: dict[str, Preset] = {
    "bigram": (BigramConfig, {"trainer": "counting"}),
    "ngram": (NGramConfig, {"trainer": "counting"}),
    "mixture": (MixtureConfig, {"trainer": "mixing"}),
    "babygpt": (BabyGPTConfig, {}),
    "babygpt-v2-position": ("babygpt", {"model.position": "learned"}),
    "babygpt-v3-attention": ("babygpt-v2-position", {"model.n_layer": 1}),
    "babygpt-v4-multihead": ("babygpt-v3-attention", {"model.n_head": 4}),
    "babygpt-v5-feedforward": ("babygpt-v4-multihead", {"model.feed_forward": 1}),
    "babygpt-v6-blocks": ("babygpt-v5-feedforward", {"model.n_layer": 3, "model.unroll": 3}),
    "babygpt-v7-residual": ("babygpt-v6-blocks", {"model.residual": True}),
    "babygpt-v8-projection": ("babygpt-v7-residual", {"model.projection": True, "model.feed_forward": 4}),
    "babygpt-v9-layernorm": ("babygpt-v8-projection", {"model.norm": "layer"}),
    "babygpt-v10-dropout": ("babygpt-v9-layernorm", {"model.dropout": 0.2}),
    "babygpt-v11": (
        "babygpt-v10-dropout",
        {
            "model.block_size": 256,
            "model.n_embd": 384,
            "model.n_head": 6,
            "model.n_layer": 6,
            "model.unroll": 6,
            "optimizer": "adamw-3e-4",
            "train.batch_size": 64,
        },
    ),
    "babygpt-v12": ("babygpt-v11", {}),
    # nanoGPT's recipe for a laptop: 2,000 steps of 12 x 64 tokens.
    "gpt-tiny-2019": (
        "babygpt-v9-layernorm",
        {
            "model.block_size": 64,
            "model.n_embd": 128,
            "model.n_head": 4,
            "model.n_layer": 4,
            "model.unroll": 4,
            "model.activation": "gelu",
            "optimizer": "adamw-cosine",
            "train.batch_size": 12,
            "train.steps": 2000,
            "train.eval_interval": 250,
        },
    ),
    # The rungs since GPT-2, at its size.
    "babygpt-v13-rotary": ("gpt-tiny-2019", {"model.position": "rotary"}),
    "babygpt-v14-rmsnorm": ("babygpt-v13-rotary", {"model.norm": "rms", "model.qkv_bias": True}),
    "babygpt-v15-swiglu": (
        "babygpt-v14-rmsnorm",
        {
            "model.activation": "silu",
            "model.gated": True,
            "model.feed_forward": 2.75,
            "model.bias": False,
            "model.qkv_bias": False,
            "model.head_bias": False,
        },
    ),
    "babygpt-v16-gqa": ("babygpt-v15-swiglu", {"model.n_kv_head": 2}),
    "babygpt-v17-qknorm": ("babygpt-v16-gqa", {"model.qk_norm": True}),
    "llama-tiny": ("babygpt-v15-swiglu", {}),
    "qwen-tiny": ("babygpt-v17-qknorm", {"model.norm_eps": 1e-6}),
    # The best found for one minute, and for five, on two CPU cores (experiments/recipes).
    "gpt-tiny": (
        "qwen-tiny",
        {
            "model.n_embd": 64,
            "model.n_head": 2,
            "model.n_kv_head": 1,
            "optimizer": "muon-cosine",
            "train.steps": 1800,
        },
    ),
    "gpt-small": (
        "gpt-tiny",
        {
            "model.block_size": 128,
            "model.n_embd": 96,
            "model.n_head": 3,
            "model.n_layer": 6,
            "model.unroll": 6,
            "optimizer": "muon-linear",
            "train.batch_size": 8,
            "train.steps": 3500,
        },
    ),
    # 124,439,808 parameters (Radford et al. 2019).
    "gpt2": (
        "babygpt-v9-layernorm",
        {
            "model.block_size": 1024,
            "model.n_embd": 768,
            "model.n_head": 12,
            "model.n_layer": 12,
            "model.head_bias": False,
            "model.tied": True,
            "model.qkv_bias": True,
            "model.activation": "gelu",
            "model.initialization": "gpt2",
            "model.vocab_size": 50257,
            "model.dtype": "bfloat16",
            "model.unroll": 12,
            "optimizer": "adamw-gpt2",
            "train.batch_size": 12,
        },
    ),
    "gpt2-medium": ("gpt2", {"model.n_embd": 1024, "model.n_head": 16, "model.n_layer": 24, "model.unroll": 1}),
    "gpt2-large": ("gpt2", {"model.n_embd": 1280, "model.n_head": 20, "model.n_layer": 36, "model.unroll": 1}),
    "gpt2-xl": ("gpt2", {"model.n_embd": 1600, "model.n_head": 25, "model.n_layer": 48, "model.unroll": 1}),
    # The shapes of two models of 2024 and 2025: 134,515,008 and 596,049,920 parameters.
    "smollm2-135m": (
        "gpt2",
        {
            "model.block_size": 2048,
            "model.n_embd": 576,
            "model.n_head": 9,
            "model.n_kv_head": 3,
            "model.n_layer": 30,
            "model.unroll": 1,
            "model.position": "rotary",
            "model.rotary_base": 1e5,
            "model.norm": "rms",
            "model.activation": "silu",
            "model.gated": True,
            "model.feed_forward": 8 / 3,
            "model.bias": False,
            "model.qkv_bias": False,
            "model.vocab_size": 49152,
        },
    ),
    "qwen3-0.6b": (
        "smollm2-135m",
        {
            "model.block_size": 4096,
            "model.n_embd": 1024,
            "model.n_head": 16,
            "model.n_kv_head": 8,
            "model.head_size": 128,
            "model.n_layer": 28,
            "model.rotary_base": 1e6,
            "model.feed_forward": 3,
            "model.qk_norm": True,
            "model.norm_eps": 1e-6,
            "model.vocab_size": 151936,
        },
    ),
}

DATA: dict[str, Preset] = {
    "pydocs": (DataConfig, {}),
    "shakespeare": (DataConfig, {}),
    "synthetic": (SyntheticConfig, {}),
}

TRAINERS: dict[str, Preset] = {
    "sgd": (TrainerConfig, {}),
    "counting": (TrainerConfig, {}),
    "mixing": (TrainerConfig, {}),
    "counts": (CountsConfig, {"train.eval_interval": 1, "checkpoint.seconds": 60.0}),
}

OPTIMIZERS: dict[str, Preset] = {
    "adamw": (AdamWConfig, {}),
    "adamw-3e-4": ("adamw", {"optimizer.learning_rate": 3e-4}),
    "adamw-cosine": (
        "adamw",
        {
            "optimizer.learning_rate": 2e-3,
            "optimizer.weight_decay": 0.1,
            "optimizer.decay": "kernels",
            "optimizer.schedule": "cosine",
            "optimizer.warmup_steps": 100,
            "optimizer.final_fraction": 0.05,
            "optimizer.clip_norm": 1.0,
            "optimizer.beta2": 0.99,
        },
    ),
    "adamw-gpt2": (
        "adamw-cosine",
        {
            "optimizer.learning_rate": 6e-4,
            "optimizer.warmup_steps": 700,
            "optimizer.final_fraction": 0.1,
            "optimizer.beta2": 0.95,
        },
    ),
    "lion": (LionConfig, {}),
    "muon": (MuonConfig, {}),
    "muon-cosine": (
        "muon",
        {
            "optimizer.weight_decay": 0.1,
            "optimizer.schedule": "cosine",
            "optimizer.warmup_steps": 100,
            "optimizer.final_fraction": 0.05,
            "optimizer.clip_norm": 1.0,
        },
    ),
    "muon-linear": ("muon-cosine", {"optimizer.schedule": "linear", "optimizer.final_fraction": 0.0}),
    "sgd": (SGDConfig, {}),
}

# A later group's recipe wins over an earlier one's: trainer=counts evaluates after every step whatever the model.
PRESETS: dict[str, dict[str, Preset]] = {
    "data": DATA,
    "optimizer": OPTIMIZERS,
    "model": MODELS,
    "trainer": TRAINERS,
}


def expand(group: str, name: str) -> tuple[type[Options], dict[str, Any]]:
    """The class of a preset's options, and everything the preset and those below it set, by dotted key."""
    start, values = PRESETS[group][name]
    if not isinstance(start, str):
        return start, values
    kind, below = expand(group, start)
    return kind, below | values


class Presets(Mapping[str, Any]):
    """The model config of every preset: `presets["gpt2"]`. Raises: ConfigError, with a suggestion, if there is none."""

    def __getitem__(self, name: str) -> Any:
        if name not in MODELS:
            raise unknown("model", name, list(MODELS))
        kind, values = expand("model", name)
        return kind(**{key.removeprefix("model."): value for key, value in values.items() if key.startswith("model.")})

    def __iter__(self) -> Iterator[str]:
        return iter(MODELS)

    def __len__(self) -> int:
        return len(MODELS)

    def __contains__(self, name: object) -> bool:
        return name in MODELS


presets = Presets()
