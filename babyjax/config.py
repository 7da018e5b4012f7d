"""The options of a run: their values from `conf/`, and the command line on top.

`key=value` sets one option, `group=choice` picks a file of `conf/group/`. A value is read by the type of its option, so
text needs no quoting beyond the shell's. Nothing here imports JAX: a typo is answered at once.
"""

import difflib
import math
import re
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import yaml

from babyjax.errors import ConfigError, RunError
from babyjax.files import replace_file
from babyjax.schema import GROUPS, BabyGPTConfig, Config, DataConfig

CONF = Path(__file__).parent / "conf"

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
    """What a group can be, by its files, v2 before v10."""
    names = (path.stem for path in (CONF / group).glob("*.yaml"))
    return sorted(names, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(9), name))


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
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(siblings)}"
    return ConfigError(f"unknown {what} {given!r}; {hint}")


def _inside(value: int | float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below and math.isfinite(value)


def _parse(key: str, value: Any, kind: Any) -> Any:
    """A value of type `kind` from YAML or from the command line, where everything is text."""
    if optional := [inner for inner in (str, int, float) if kind == inner | None]:
        if value is None or value in ("null", "none"):
            return None
        kind, value = optional[0], str(value)
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
            kind = DataConfig if value.get("path") else GROUPS[item.name].get(str(name).partition("-")[0])
            if kind is None:
                raise _unknown(item.name, str(name), choices_of(item.name))
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
    if isinstance(config.model, BabyGPTConfig) and not config.model.n_layer:
        for name in BabyGPTConfig.OF_BLOCKS:
            if (key := f"model.{name}") in arguments:
                raise ConfigError(
                    f"{key}= is for models with blocks, and {config.model.name} has none: model.n_layer=0"
                )
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
    """The options in which two runs differ so that one cannot continue the other: "key is A there, B here".

    `train.steps` is among them where the step size has a schedule, since that ends with the last step.
    """
    here, there = options_of(ours), options_of(theirs)
    bound = {"train.steps"} if ours.optimizer.schedule != "constant" else set()
    names = [
        f"{group} is {a} there, {b} here"
        for group in GROUPS
        if group != "data" and (a := getattr(theirs, group).name) != (b := getattr(ours, group).name)
    ]
    return names or [
        f"{key} is {there[key].value} there, {option.value} here"
        for key, option in here.items()
        if key in there and (key in bound or not option.free) and option.value != there[key].value
    ]
