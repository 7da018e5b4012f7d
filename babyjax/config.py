"""Options: a typed schema here, their values in `conf/`, and the command line on top.

`key=value` sets one option, `group=choice` picks a file of `conf/group/`. A value is read by the type of its option, so
text needs no quoting beyond the shell's. Nothing here imports JAX: a typo is answered at once.
"""

import difflib
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import yaml

from babyjax.errors import ConfigError, RunError
from babyjax.files import replace_file

CONF = Path(__file__).parent / "conf"
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
    n_embd: int = option("width of the embedding", interval=SIZE)
    bias: bool = option("whether the head has a bias")


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
    learning_rate: float = option("step size", interval="[0, 1e6]")
    beta1: float = option("decay of the mean gradient", interval="[0, 1)")
    beta2: float = option("decay of the mean squared gradient", interval="[0, 1)")
    eps: float = option("added to the denominator", interval="(0, 1e6]")
    weight_decay: float = option("decoupled decay", interval="[0, 1e6]")


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


# The schema of a choice in a group of `conf/`, by the `name` its file gives.
GROUPS: dict[str, dict[str, type]] = {
    "model": {"bigram": BigramConfig, "babygpt": BabyGPTConfig},
    "data": {"pydocs": DataConfig, "shakespeare": DataConfig, "synthetic": SyntheticConfig},
    "trainer": {"sgd": TrainerConfig, "counts": CountsConfig},
    "optimizer": {"adamw": OptimizerConfig},
}

T = TypeVar("T")


class Option(NamedTuple):
    """One option of a config object."""

    value: Any
    type: Any
    help: str
    interval: str
    choices: tuple[str, ...]
    free: bool


def options_of(config: Any, prefix: str = "") -> dict[str, Option]:
    """Dotted key to option of a config object, `name`s aside: those belong to the groups."""
    options = {}
    for item in fields(config):
        key, value = prefix + item.name, getattr(config, item.name)
        if is_dataclass(value):
            options |= options_of(value, key + ".")
        elif item.name != "name":
            options[key] = Option(value, item.type, **item.metadata)
    return options


def choices_of(group: str) -> list[str]:
    """What a group can be, by its files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def parse_arguments(argv: list[str]) -> dict[str, str]:
    """`key=value` arguments to a dictionary, the last of a key winning. Raises `ConfigError` for anything else."""
    arguments = {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            raise ConfigError(f"{argument!r} is not an option; options are written key=value (see --help)")
        arguments[key] = value
    return arguments


def _unknown(what: str, given: str, known: list[str]) -> ConfigError:
    same_name = [key for key in known if key.rpartition(".")[2] == given.rpartition(".")[2]]
    close = same_name or difflib.get_close_matches(given, known, n=1)
    siblings = [key for key in known if "." not in key or key.partition(".")[0] == given.partition(".")[0]]
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(siblings))}"
    return ConfigError(f"unknown {what} {given!r}; {hint}")


def _inside(value: int | float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below and math.isfinite(value)


def _parse(key: str, value: Any, kind: Any) -> Any:
    """A value of type `kind` from YAML or from the command line, where everything is text."""
    if kind in (str | None, float | None):
        if value is None or value in ("null", "none"):
            return None
        kind = str if kind == (str | None) else float
        value = str(value)
    try:
        if kind is bool and str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        if kind is int and not isinstance(value, (bool, float)):
            return int(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is str and isinstance(value, str):
            return value
    except (TypeError, ValueError):
        pass
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    raise ConfigError(f"{key}={value} is not {names[kind]}")


def _check(key: str, option: Option) -> None:
    if option.choices and option.value not in option.choices:
        raise _unknown(f"value of {key}:", str(option.value), list(option.choices))
    if option.interval and option.value is not None and not _inside(option.value, option.interval):
        raise ConfigError(f"{key}={option.value} is out of range; it must lie in {option.interval}")


def _build(schema: type, values: Any, prefix: str = "") -> Any:
    """A config object from nested dictionaries: every option there, of its type, and none besides."""
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix or 'the configuration'} is not a table of options")
    names = {item.name for item in fields(schema)}
    if odd := (set(values) ^ names) - {item.name for item in fields(schema) if item.default is not MISSING}:
        raise ConfigError(f"{prefix}{min(map(str, odd))} is {'unknown' if odd - names else 'missing'}")
    built = {}
    for item in fields(schema):
        key, value = prefix + item.name, values.get(item.name, item.default)
        if item.name in GROUPS and prefix == "":
            value = value if isinstance(value, dict) else {}
            name = value.get("name")
            kind = DataConfig if value.get("path") else GROUPS[item.name].get(str(name))
            if kind is None:
                raise _unknown(item.name, str(name), list(GROUPS[item.name]))
            built[item.name] = _build(kind, value, key + ".")
        elif is_dataclass(item.type):
            built[item.name] = _build(cast(type, item.type), value, key + ".")
        else:
            built[item.name] = _parse(key, value, item.type)
    return schema(**built)


def _with_arguments(config: T, arguments: dict[str, str], groups: tuple[str, ...] = ()) -> T:
    """`config` with dotted keys set from text, every value checked."""
    known = options_of(config)
    for key, text in arguments.items():
        if key not in known:
            raise _unknown("option", key, [*groups, *known])
        *path, name = key.split(".")
        target = config
        for part in path:
            target = getattr(target, part)
        setattr(target, name, _parse(key, text, known[key].type))
    for key, option in options_of(config).items():
        _check(key, option)
    return config


def load_config(argv: list[str]) -> Config:
    """The config of a training run, from its command-line arguments.

    Raises `ConfigError` for an option that does not exist or a value it cannot have.
    """
    from hydra import compose, initialize_config_dir  # only training composes groups
    from omegaconf import OmegaConf

    arguments = parse_arguments(argv)
    chosen = {group: arguments.pop(group) for group in GROUPS if group in arguments}
    for group, choice in chosen.items():
        if choice not in choices_of(group):
            raise _unknown(group, choice, choices_of(group))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", [f"{group}={choice}" for group, choice in chosen.items()])
    config = _with_arguments(_build(Config, OmegaConf.to_container(composed)), arguments, tuple(GROUPS))
    if config.data.path is not None:
        config.data = DataConfig(Path(config.data.path).stem, config.data.path, config.data.tokenizer)
    if not config.run_dir:
        config.run_dir = f"checkpoints/{config.model.name}-{config.data.name}"
    return config


def config_from_dict(values: Any) -> Config:
    """A config from nested dictionaries. Raises `ConfigError` where an option is missing, unknown or out of range."""
    return _with_arguments(_build(Config, values), {})


def load_saved_config(path: Path) -> Config:
    """The config a run directory keeps. Raises `RunError` where the file is not one."""
    try:
        return config_from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ConfigError, OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path} is not the configuration of a run: {error}") from error


def save_config(config: Config, path: Path) -> None:
    """Write a config as YAML."""
    replace_file(path, yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True))


def read_options(schema: type[T], argv: list[str]) -> T:
    """Arguments for a flat schema whose fields have defaults. Raises `ConfigError` as `load_config` does."""
    return _with_arguments(schema(), parse_arguments(argv))


def differences(ours: Config, theirs: Config) -> list[str]:
    """The options in which two runs differ so that one cannot continue the other: "key is A there, B here"."""
    here, there = options_of(ours), options_of(theirs)
    names = [
        f"{group} is {a} there, {b} here"
        for group in GROUPS
        if group != "data" and (a := getattr(theirs, group).name) != (b := getattr(ours, group).name)
    ]
    return names or [
        f"{key} is {there[key].value} there, {option.value} here"
        for key, option in here.items()
        if key in there and not option.free and option.value != there[key].value
    ]
