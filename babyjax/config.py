"""Every option of a training run: type, default, range and help.

`options.py` reads them from the command line, `recipes.py` has the named combinations. All config classes are frozen
and hashable, so that a model can keep its config as static data. Nothing here imports JAX.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from babyjax.errors import ConfigError
from babyjax.schema import Options, count, option, size
from babyjax.text import truncated


class ModelConfig(Options):
    group: ClassVar[str] = "model"
    trainers: ClassVar[tuple[str, ...]]  # what it can be trained by

    @property
    def is_v1(self) -> bool:
        """Whether this is BabyGPT v1."""
        return False

    @property
    def window(self) -> int:
        """Tokens in a training window; 1 if the model is not trained on windows."""
        return 1


class WindowedConfig(ModelConfig):
    """A model that is trained on windows."""

    block_size: int = option(8, "tokens in a training window", ge=1, le=1e9)

    @property
    def window(self) -> int:
        return self.block_size


class BigramConfig(WindowedConfig):
    """The count bigram."""

    trainers: ClassVar[tuple[str, ...]] = ("counting",)
    smoothing: float = option(1.0, "added to every count", ge=0, le=1e9)
    counting: Literal["corpus", "windows"] = option("corpus", "count every pair once, or random training windows")


class NGramConfig(ModelConfig):
    """The counted n-gram."""

    trainers: ClassVar[tuple[str, ...]] = ("counting",)
    order: Annotated[int, Field(ge=1, le=10)] | Literal["auto"] = option("auto", "tokens of the longest n-grams")
    discounts: Literal["published", "fitted"] = option(
        "published", "Kneser-Ney discounts: the paper's formula, or fitted"
    )
    arpa: str | None = option(None, "take the n-grams of this ARPA file instead of counting")


class MixtureConfig(ModelConfig):
    """A linear mixture of trained runs."""

    trainers: ClassVar[tuple[str, ...]] = ("mixing",)
    parts: str = option("", "run directories to mix, with commas between them")
    weights: Literal["global", "context"] = option("context", "mixture weights: one set, or by what the n-gram knows")


class BabyGPTConfig(WindowedConfig):
    """A network of the ladder; the defaults are BabyGPT v1."""

    trainers: ClassVar[tuple[str, ...]] = ("sgd", "counts")
    n_embd: int = count(32, "embedding width (0: the unigram model)")
    position: Literal["none", "learned", "rotary"] = option("none", "how the network knows positions")
    rotary_base: float = option(1e4, "base of the wavelengths of rotary positions", gt=1, le=1e9)
    n_layer: int = option(0, "transformer blocks", ge=0, le=1000)
    n_head: int = option(1, "attention heads", ge=1, le=1e4)
    n_kv_head: int | None = option(None, "heads of keys and values (empty: as many)", ge=1, le=1e4)
    head_size: int | None = option(None, "width of a head (empty: n_embd over n_head)", ge=1, le=1e5)
    qk_norm: bool = option(False, "RMSNorm of each query and key")
    feed_forward: float = option(0.0, "feed-forward width over n_embd (0: none)", ge=0, le=64)
    activation: Literal["relu", "relu2", "gelu", "silu"] = option("relu", "activation of the feed-forward")
    gated: bool = option(False, "multiply the feed-forward by an activated gate")
    residual: bool = option(False, "residual connections")
    projection: bool = option(False, "output projection of attention and feed-forward")
    norm: Literal["none", "layer", "rms"] = option("none", "norm before attention, feed-forward and head")
    norm_eps: float = option(1e-5, "added to the mean square in norms", gt=0, le=1)
    dropout: float = option(0.0, "dropout rate", ge=0, lt=1)
    bias: bool = option(True, "biases in blocks and layer norms")
    qkv_bias: bool = option(False, "biases of queries, keys and values")
    head_bias: bool = option(True, "bias in the head")
    tied: bool = option(False, "head shares the token embedding")
    logit_cap: float = option(0.0, "bound logits by cap * tanh(logits / cap) (0: off)", ge=0, le=1e6)
    vocab_size: int | None = size(None, "room for this many tokens (empty: as many as the text has)")
    initialization: Literal["pytorch", "gpt2"] = option("pytorch", "initialization of the parameters")
    dtype: Literal["float32", "bfloat16"] = option("float32", "precision of activations and products")
    attention: Literal["auto", "xla", "cudnn"] = option("auto", "attention implementation", free=True)
    unroll: int = option(1, "layers unrolled per scan step", free=True, ge=1, le=1000)
    remat: bool = option(False, "recompute activations in the backward pass", free=True)

    # Options without meaning in a model without blocks.
    OF_BLOCKS: ClassVar = (
        *("rotary_base", "n_head", "n_kv_head", "head_size", "qk_norm", "feed_forward", "activation", "gated"),
        *("residual", "projection", "dropout", "bias", "qkv_bias", "attention"),
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "BabyGPTConfig":
        if not self.n_layer:
            if self.position == "rotary":
                raise ConfigError("model.position=rotary is for models with blocks: it turns queries and keys")
            return self
        if not self.n_embd or (self.head_size is None and self.n_embd % self.n_head):
            raise ConfigError(f"model.n_head={self.n_head} does not divide model.n_embd={self.n_embd}")
        if self.n_head % self.kv_heads:
            raise ConfigError(f"model.n_kv_head={self.n_kv_head} does not divide model.n_head={self.n_head}")
        if self.position == "rotary" and self.head_width % 2:
            raise ConfigError(f"model.position=rotary turns pairs, but a head has a width of {self.head_width}")
        if self.feed_forward > 0 and not self.hidden_width:
            raise ConfigError(f"model.feed_forward={self.feed_forward} of model.n_embd={self.n_embd} is no unit at all")
        for name, width in (("head_size", self.attention_width), ("feed_forward", self.hidden_width or self.n_embd)):
            if width != self.n_embd and not self.projection:
                raise ConfigError(
                    f"model.{name}={getattr(self, name):g} needs model.projection=true to return to model.n_embd"
                )
        return self

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_size or self.n_embd // self.n_head

    @property
    def attention_width(self) -> int:
        """Width of all heads together."""
        return self.n_head * self.head_width

    @property
    def hidden_width(self) -> int:
        """Units of the feed-forward."""
        return round(self.feed_forward * self.n_embd)

    @property
    def is_v1(self) -> bool:
        """Whether this is BabyGPT v1, an embedding and a linear head in float32 and nothing else."""
        more = (self.position, self.norm) != ("none", "none") or self.n_layer or self.tied or self.logit_cap
        return not (more or self.vocab_size) and self.dtype == "float32"


class DataConfig(Options):
    group: ClassVar[str] = "data"
    path: str | None = option(None, "text file, folder or pattern, or a prepared corpus", free=True)
    field: str = option("text", "field of .jsonl lines that has the text", free=True)
    tokenizer: Literal["char", "byte", "bpe"] | str = option("char", "what a token is, or the path of a tokenizer.json")
    vocab_size: int | None = option(None, "tokens of data.tokenizer=bpe (empty: 8192)", ge=258, le=1e6)

    @model_validator(mode="after")
    def _only_bpe_has_a_size(self) -> "DataConfig":
        if self.vocab_size and self.tokenizer != "bpe":
            raise ConfigError(
                f"data.vocab_size={self.vocab_size} is for data.tokenizer=bpe, not {truncated(self.tokenizer)}"
            )
        return self


class MovedConfig(Options):
    """Where the corpus of a run is."""

    group: ClassVar[str] = "data"
    path: str | None = option(None, "where the run's corpus is now, if it has moved")


class SyntheticConfig(DataConfig):
    """A Markov source of known entropy."""

    states: int = option(26, "states of the Markov source", ge=1, le=5000)
    length: int = size(1_000_000, "characters to draw")
    order: int = option(1, "states that the next one depends on", ge=1, le=16)
    seed: int = count(0, "seed of the source")


class OptimizerConfig(Options):
    group: ClassVar[str] = "optimizer"
    learning_rate: float = option(1e-2, "peak learning rate", ge=0, le=1e6)
    weight_decay: float = option(0.01, "decoupled weight decay", ge=0, le=1e6)
    decay: Literal["all", "kernels"] = option("all", "parameters to decay (kernels: of linear layers)")
    schedule: Literal["constant", "cosine", "linear"] = option("constant", "learning-rate schedule after warm-up")
    warmup_steps: int = count(0, "linear warm-up steps")
    final_fraction: float = option(0.0, "final learning rate over its peak", ge=0, le=1)
    clip_norm: float | None = option(None, "clip gradients to this global norm (empty: off)", gt=0, le=1e9)


class AdamWConfig(OptimizerConfig):
    beta1: float = option(0.9, "decay of the mean gradient", ge=0, lt=1)
    beta2: float = option(0.999, "decay of the mean squared gradient", ge=0, lt=1)
    eps: float = option(1e-8, "added to the denominator", ge=1e-30, le=1e6)


class LionConfig(OptimizerConfig):
    learning_rate: float = option(1e-3, "peak learning rate", ge=0, le=1e6)
    weight_decay: float = option(0.1, "decoupled weight decay", ge=0, le=1e6)
    decay: Literal["all", "kernels"] = option("kernels", "parameters to decay (kernels: of linear layers)")
    beta1: float = option(0.9, "weight of the momentum in an update", ge=0, lt=1)
    beta2: float = option(0.99, "decay of the momentum", ge=0, lt=1)


class MuonConfig(OptimizerConfig):
    learning_rate: float = option(2e-2, "peak learning rate of the kernels of blocks", ge=0, le=1e6)
    decay: Literal["all", "kernels"] = option("kernels", "parameters to decay (kernels: of linear layers)")
    momentum: float = option(0.95, "decay of the momentum", ge=0, lt=1)
    adam_learning_rate: float = option(3e-3, "peak learning rate of all other parameters", ge=0, le=1e6)


class SGDConfig(OptimizerConfig):
    learning_rate: float = option(1.0, "peak learning rate", ge=0, le=1e6)
    weight_decay: float = option(0.0, "weight decay, part of the gradient", ge=0, le=1e6)
    clip_norm: float | None = option(1.0, "clip gradients to this global norm (empty: off)", gt=0, le=1e9)
    momentum: float = option(0.9, "decay of the momentum", ge=0, lt=1)


class TrainerConfig(Options):
    """Training without options of its own: gradient steps, counting once, or mixing trained runs."""

    group: ClassVar[str] = "trainer"


class CountsConfig(TrainerConfig):
    """Training on pair counts."""

    tolerance: float | None = option(None, "stop below this predicted decrease, nats (empty: by size)", ge=1e-12, le=1)
    smoothing: float | None = option(None, "added to every count of a seen context (empty: 1/V)", ge=0, le=1e9)
    penalty: float = option(0.0, "weight of half the squared factors", ge=0, le=1e6)
    starts: int = option(4, "restarts, of which the best is kept", ge=1, le=1e6)
    choose: Literal["nothing", "smoothing", "penalty"] = option("nothing", "choose this by validation loss")

    @model_validator(mode="after")
    def _chosen_is_not_given(self) -> "CountsConfig":
        given = {"smoothing": self.smoothing is not None, "penalty": self.penalty > 0, "nothing": False}
        if given[self.choose]:
            raise ConfigError(f"trainer.choose={self.choose} and trainer.{self.choose}= cannot both be given")
        return self


class TrainConfig(Options):
    group: ClassVar[str] = "train"
    steps: int = size(5000, "total updates", free=True)
    batch_size: int = size(32, "windows per batch")
    seed: int = count(0, "seed of the initialization and the batches")
    seeds: int = option(1, "seeds to train, one run each", free=True, ge=1, le=1000)
    eval_interval: int = size(500, "steps between evaluations", free=True)
    eval_tokens: int | None = size(50_000, "tokens per split for evaluation during training (empty: all)", free=True)
    grow_from: str | None = option(None, "initialize by growing this smaller run")
    accumulation: int = size(1, "gradient accumulation steps")
    mesh: Literal["data", "fsdp"] = option("data", "on several devices: replicate or shard the state", free=True)

    @model_validator(mode="after")
    def _parts_are_equal(self) -> "TrainConfig":
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"train.accumulation={self.accumulation} does not divide train.batch_size={self.batch_size}"
            )
        return self


class CheckpointConfig(Options):
    group: ClassVar[str] = "checkpoint"
    interval: int = size(1000, "steps between checkpoints", free=True)
    seconds: float | None = option(None, "seconds between checkpoints (empty: by steps only)", free=True, gt=0, le=1e9)
    keep: int = size(2, "recent checkpoints to keep (the best is always kept)", free=True)


class ProcessesConfig(Options):
    """Which of the processes that train together this one is."""

    group: ClassVar[str] = "distributed"
    coordinator: str | None = option(None, "HOST:PORT at which process 0 can be reached", free=True)
    processes: int | None = option(None, "processes that train together", free=True, ge=1, le=1e6)
    process: int | None = option(None, "which of them this one is, from 0", free=True, ge=0, lt=1e6)

    @model_validator(mode="after")
    def _complete(self) -> "ProcessesConfig":
        given = self.coordinator is not None, self.processes is not None, self.process is not None
        if any(given) and not all(given):
            raise ConfigError(
                "distributed.coordinator=HOST:PORT, distributed.processes= and distributed.process= belong together; "
                "give all three"
            )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise ConfigError(f"distributed.coordinator={truncated(self.coordinator)} is not HOST:PORT")
        if self.process is not None and self.processes is not None and self.process >= self.processes:
            raise ConfigError(
                f"distributed.process={self.process} is not one of distributed.processes={self.processes}, which count "
                "from 0"
            )
        return self


class Choices(Options):
    """The preset of each group."""

    model: str = "babygpt"
    data: str = "pydocs"
    trainer: str = "sgd"
    optimizer: str = "adamw"


class Config(Options):
    """Every option of a training run."""

    choices: Choices = Choices()
    model: ModelConfig = BabyGPTConfig()
    data: DataConfig = DataConfig()
    trainer: TrainerConfig = TrainerConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    processes: ProcessesConfig = ProcessesConfig()
    distributed: Literal["none", "auto"] = option("none", "auto: join the processes of a cluster's job", free=True)
    log: Literal["none", "tensorboard", "wandb"] = option("none", "also log to TensorBoard or wandb", free=True)
    run_dir: str = option("", "run directory", free=True)
    overwrite: bool = option(False, "replace an existing run", free=True)

    @model_validator(mode="after")
    def _fit_together(self) -> "Config":
        names, model = self.choices, self.model
        if names.trainer not in model.trainers:
            able = " or ".join(f"trainer={name}" for name in model.trainers)
            raise ConfigError(f"model={names.model} is trained by {able}, not by trainer={names.trainer}")
        if isinstance(self.trainer, CountsConfig) and not model.is_v1:
            raise ConfigError(f"trainer=counts is for v1 in float32; model={names.model} with these options is not")
        if self.train.seeds > 1 and not self.seeded:
            raise ConfigError(f"train.seeds={self.train.seeds} needs a model that a seed changes, not {names.model}")
        if self.train.grow_from and names.trainer != "sgd":
            raise ConfigError(f"train.grow_from= is for trainer=sgd, not trainer={names.trainer}")
        if self.distributed == "auto" and self.processes.coordinator:
            raise ConfigError("distributed=auto finds the coordinator itself; leave out distributed.coordinator=")
        if self.is_distributed and (names.trainer != "sgd" or self.train.seeds > 1):
            what = f"trainer={names.trainer}" if names.trainer != "sgd" else f"train.seeds={self.train.seeds}"
            raise ConfigError(f"{what} runs in one process; only trainer=sgd with one seed is distributed")
        return self

    @property
    def is_distributed(self) -> bool:
        """Whether this process trains together with others."""
        return self.distributed == "auto" or self.processes.coordinator is not None

    @property
    def seeded(self) -> bool:
        """Whether another `train.seed` gives another model."""
        windows = isinstance(self.model, BigramConfig) and self.model.counting == "windows"
        return windows or self.choices.trainer in ("sgd", "counts")
