"""Every option of a training run: its type, meaning and range. The values are in `conf/`; `config.py` reads them.

An option with a default here came after runs had been kept without it: the default is what those runs did.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar

SIZE, SEED = "[1, 2e9]", "[0, 2e9]"


def option(text: str, default: Any = MISSING, *, interval: str = "", choices: tuple[str, ...] = (), free: bool = False):
    """A field of the schema: its help, the interval or the choices of its value.

    An interval is written as in mathematics, "[0, 1)". A `free` option may differ when a run is continued.
    """
    return field(default=default, metadata={"help": text, "interval": interval, "choices": choices, "free": free})


@dataclass
class ModelConfig:
    name: str = option("")
    block_size: int = option("tokens in a training window", interval="[1, 1e9]")


@dataclass
class BigramConfig(ModelConfig):
    smoothing: float = option("added to every count", interval="[0, 1e9]")
    counting: str = option("every pair once, or the seed's random windows", choices=("corpus", "windows"))


@dataclass
class BabyGPTConfig(ModelConfig):
    """The ideas of a network of the ladder; without those that have a default it is v1."""

    n_embd: int = option("width of the embedding", interval=SIZE)
    bias: bool = option("whether the head has a bias")
    position: bool = option("add a learned embedding of the position", False)
    n_layer: int = option("blocks of attention and feed-forward", 0, interval="[0, 1000]")
    n_head: int = option("heads the attention of a block has", 1, interval="[1, 1e4]")
    feed_forward: int = option("hidden width of the feed-forward, times n_embd (0: none)", 0, interval="[0, 64]")
    activation: str = option("of the feed-forward", "relu", choices=("relu", "gelu"))
    residual: bool = option("add what attention and feed-forward make to what they read", False)
    projection: bool = option("a second matrix after the heads and in the feed-forward", False)
    norm: bool = option("normalise what attention, feed-forward and head read", False)
    dropout: float = option("share of activations dropped in training", 0.0, interval="[0, 1)")
    attention_bias: bool = option("whether queries, keys and values have a bias", False)
    tied: bool = option("whether the head is the embedding transposed", False)
    vocab_size: int | None = option("room for so many tokens (none: as many as there are)", None, interval=SIZE)
    start: str = option("random start, as PyTorch's layers or as GPT-2", "pytorch", choices=("pytorch", "gpt2"))
    dtype: str = option("precision of the products", "float32", choices=("float32", "bfloat16"))
    unroll: int = option("blocks compiled as one, for speed", 1, interval="[1, 1000]", free=True)
    remat: bool = option("compute activations twice, to keep fewer", False, free=True)

    # What has no meaning without blocks.
    OF_BLOCKS: ClassVar = (
        "n_head",
        "feed_forward",
        "activation",
        "residual",
        "projection",
        "dropout",
        "attention_bias",
    )

    @property
    def is_v1(self) -> bool:
        """Whether this is an embedding and a linear head in float32 and nothing else."""
        ideas = self.position or self.n_layer or self.norm or self.tied or self.vocab_size
        return not ideas and self.dtype == "float32"


@dataclass
class DataConfig:
    name: str = option("")
    path: str | None = option("a UTF-8 text file of yours", free=True)
    tokenizer: str = option("what a token is", choices=("char", "byte"))


@dataclass
class SyntheticConfig(DataConfig):
    states: int = option("characters of the Markov source", interval="[1, 5000]")
    length: int = option("characters drawn from it", interval=SIZE)
    seed: int = option("seed of the source", interval=SEED)


@dataclass
class OptimizerConfig:
    name: str = option("")
    learning_rate: float = option("step size, the highest", interval="[0, 1e6]")
    weight_decay: float = option("decoupled decay", interval="[0, 1e6]")
    decay: str = option("what decays: all, or the matrices of linear layers", "all", choices=("all", "kernels"))
    schedule: str = option("step size from warm-up to end", "constant", choices=("constant", "cosine", "linear"))
    warmup_steps: int = option("steps over which the step size rises", 0, interval=SEED)
    final_learning_rate: float = option("step size at the end of a schedule", 0.0, interval="[0, 1e6]")
    clip_norm: float | None = option("longest gradient (none: any)", None, interval="(0, 1e9]")


@dataclass(kw_only=True)
class AdamWConfig(OptimizerConfig):
    beta1: float = option("decay of the mean gradient", interval="[0, 1)")
    beta2: float = option("decay of the mean squared gradient", interval="[0, 1)")
    eps: float = option("added to the denominator", interval="(0, 1e6]")


@dataclass(kw_only=True)
class LionConfig(OptimizerConfig):
    beta1: float = option("weight of the momentum in a step", interval="[0, 1)")
    beta2: float = option("decay of the momentum", interval="[0, 1)")


@dataclass(kw_only=True)
class MuonConfig(OptimizerConfig):
    momentum: float = option("decay of the momentum of a matrix", interval="[0, 1)")
    adam_learning_rate: float = option("step size of all but the matrices of blocks", interval="[0, 1e6]")


@dataclass(kw_only=True)
class SGDConfig(OptimizerConfig):
    momentum: float = option("decay of the momentum", interval="[0, 1)")


@dataclass
class TrainerConfig:
    name: str = option("")


@dataclass
class CountsConfig(TrainerConfig):
    tolerance: float | None = option("nats a step must still promise (none: by size)", interval="[1e-12, 1]")
    smoothing: float | None = option("added to every count of a context seen (none: 1/V)", interval="[0, 1e9]")
    penalty: float = option("times half the squares of embedding and head", interval="[0, 1e6]")
    starts: int = option("descents, of which the best is kept", interval="[1, 1e6]")
    choose: str = option("what validation chooses", choices=("nothing", "smoothing", "penalty"))


@dataclass
class TrainConfig:
    steps: int = option("updates to make in all", interval=SIZE, free=True)
    batch_size: int = option("windows in a batch", interval=SIZE)
    seed: int = option("seed of the start and the batches", interval=SEED)
    eval_interval: int = option("steps between evaluations", interval=SIZE, free=True)
    eval_tokens: int | None = option(
        "tokens of each split to watch a model of many tokens by (none: all)", None, interval=SIZE, free=True
    )
    grow_from: str | None = option("run whose network this one, a larger, starts as (none: at random)", None)
    accumulation: int = option("parts a batch is computed in, to need less memory", 1, interval=SIZE)


@dataclass
class CheckpointConfig:
    interval: int = option("steps between checkpoints", interval=SIZE, free=True)
    keep: int = option("checkpoints kept, the newest, besides the best", interval=SIZE, free=True)


@dataclass
class Config:
    """Everything a training run is told; a run directory keeps it as `config.yaml`."""

    model: ModelConfig
    data: DataConfig
    trainer: TrainerConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    run_dir: str = option("where the run is kept", free=True)
    overwrite: bool = option("start anew where run_dir holds a run", free=True)


# The schema of a choice in a group of `conf/`, by its family: what its name has before the first hyphen.
GROUPS: dict[str, dict[str, type]] = {
    "model": {"bigram": BigramConfig, "babygpt": BabyGPTConfig, "gpt": BabyGPTConfig, "gpt2": BabyGPTConfig},
    "data": {"pydocs": DataConfig, "shakespeare": DataConfig, "synthetic": SyntheticConfig},
    "trainer": {"sgd": TrainerConfig, "counts": CountsConfig},
    "optimizer": {"adamw": AdamWConfig, "lion": LionConfig, "muon": MuonConfig, "sgd": SGDConfig},
}
