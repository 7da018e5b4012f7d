"""Reading options: `key=value` and `group=choice` arguments, `config=FILE.yaml`, and the config a run keeps.

A value is read by the type of its option, so text needs no quoting beyond the shell's. Nothing here imports JAX: a typo
is answered at once.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml

from babyjax.config import BabyGPTConfig, BigramConfig, Choices, Config, NGramConfig
from babyjax.data import documents
from babyjax.errors import ConfigError
from babyjax.files import read_text, user_path
from babyjax.recipes import PRESETS, expand
from babyjax.schema import Options, choices_of, kinds_of, unknown
from babyjax.text import truncated

GROUPS = tuple(Choices.model_fields)
# Options that say where a run is and by which processes it is trained, and not what it is.
OF_PLACE = ("run_dir", "overwrite", "distributed", "processes")
TOKENIZER = "data.tokenizer"
# Limits of an options file: it is written by hand.
MAX_FILE, MAX_DEPTH = 1 << 16, 4

Flat = TypeVar("Flat", bound=Options)


def presets_of(group: str) -> list[str]:
    """The presets of a group, v2 before v10."""
    return sorted(PRESETS[group], key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(9), name))


def options_of(config: Options) -> Iterator[tuple[str, Any, Any]]:
    """Every option of a config as (dotted key, value, pydantic field)."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Options):
            if not isinstance(value, Choices):
                yield from options_of(value)
        else:
            yield config.key(name), value, field


def parse_arguments(argv: list[str]) -> dict[str, str]:
    """`key=value` arguments as a dictionary, the last of a key winning. Raises: ConfigError for anything else."""
    arguments = {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            raise ConfigError(f"{truncated(argument)!r} is not an option; options are written key=value (see --help)")
        arguments[key] = value
    return arguments


def _read_value(key: str, text: str, field: Any) -> Any:
    """A value from text, by the type of its option. Ranges and choices are checked by the config class."""
    # Annotated[int, ...] is an int with limits.
    kinds = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds_of(field)]
    if type(None) in kinds and (text == "" or (text in ("none", "null") and str not in kinds)):
        return None
    words = choices_of(field)
    if str in kinds or text in words or (words and not {int, float} & set(kinds)):
        return text
    if bool in kinds:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ConfigError(f"{key}={truncated(text)} is not true or false")
    number, what = (float, "a number") if float in kinds else (int, "an integer")
    try:
        return number(text)
    except ValueError:
        raise ConfigError(f"{key}={truncated(text)} is not {' or '.join([what, *words])}") from None


def _build(kind: type[Options], values: dict[str, Any], arguments: dict[str, str], known: list[str]) -> Any:
    """A config object from preset values and the arguments of its group, which are removed from `arguments`."""
    own, parts = {}, {}
    for name, field in kind.model_fields.items():
        if isinstance(field.default, Options):
            parts[name] = _build(type(field.default), {}, arguments, known)
        else:
            own[name] = field
    for name, field in own.items():
        if (key := kind.key(name)) in arguments:
            values[key] = _read_value(key, arguments.pop(key), field)
    known.extend(map(kind.key, own))
    return kind(**parts, **{name: values[key] for name in own if (key := kind.key(name)) in values})


def _read_file(path: str) -> dict[str, str]:
    """The options in a YAML file, nested or dotted, as if they had been typed. Raises: ConfigError."""
    name = f"config={truncated(path)}"
    try:
        text = read_text(Path(path).expanduser(), MAX_FILE)
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):  # before recursion meets it
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{name} is nested too deeply or has an alias; write key: value")
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror}") from None
    except (ValueError, RuntimeError, yaml.YAMLError) as error:
        raise ConfigError(f"{name} is not a file of options: {truncated(' '.join(str(error).split()))}") from None
    arguments = {}
    for key, value in _flat(name, node) if node else ():
        if key == "config":
            raise ConfigError(f"{name} has the option config, which belongs on the command line")
        if key in arguments:
            raise ConfigError(f"{name} has the option {truncated(key)} twice")
        if key == TOKENIZER and value.startswith("./"):  # of a run, which may have moved
            value = os.path.abspath(Path(path).expanduser().parent / value)
        arguments[key] = value
    return arguments


def _flat(name: str, node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The scalars below a YAML node, as text, by dotted key."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{name} is not a table of options")
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{name} has a list or table for a key; write key: value")
        if isinstance(value, yaml.SequenceNode):
            raise ConfigError(f"{name}: {truncated(prefix + key.value)} is a list, not one value")
        if isinstance(value, yaml.ScalarNode):
            null = value.style is None and value.value in ("null", "~")  # not in quotes
            yield prefix + key.value, "" if null else value.value
        else:
            yield from _flat(name, value, f"{prefix}{key.value}.")


def all_arguments(argv: list[str]) -> dict[str, str]:
    """What is on the command line, on top of what is in the file it names. Raises: ConfigError for a second file."""
    if sum(argument.startswith("config=") and argument != "config=" for argument in argv) > 1:
        raise ConfigError("config= is given twice; name one file, and other options on the command line")
    arguments = parse_arguments(argv)
    path = arguments.pop("config", "")
    return (_read_file(path) if path else {}) | arguments


def load_config(argv: list[str]) -> Config:
    """The config of a training run from its command-line arguments.

    Raises: ConfigError for an unknown option, an invalid value, or options that contradict each other.
    """
    arguments = all_arguments(argv)
    given = set(arguments)
    chosen = {group: arguments.pop(group) for group in GROUPS if group in arguments}
    for group, name in chosen.items():
        if name not in PRESETS[group]:
            raise unknown(group, name, presets_of(group))
    choices = Choices(**chosen)
    recipe = expand("model", choices.model)[1]
    choices = Choices(**{**{group: recipe[group] for group in GROUPS if group in recipe}, **chosen})
    kinds, values = {}, {}
    for group in PRESETS:
        kinds[group], recipe = expand(group, getattr(choices, group))
        values |= recipe
    known = list(GROUPS)
    # A recipe's options of a group are for the preset it names.
    parts = {
        name: _build(
            kinds.get(name, type(field.default)),
            {key: value for key, value in values.items() if key.partition(".")[0] == name},
            arguments,
            known,
        )
        for name, field in Config.model_fields.items()
        if isinstance(field.default, Options) and name != "choices"
    }
    own = {name: field for name, field in Config.model_fields.items() if not isinstance(field.default, Options)}
    known.extend([*own, "config"])
    parts |= {name: _read_value(name, arguments.pop(name), own[name]) for name in own if name in arguments}
    if arguments:
        raise _unknown_option(min(arguments), known, choices)
    config = Config(choices=choices, **parts)
    _check_given(config, given)
    many = "-seeds" * (config.train.seeds > 1)
    return config.replace(run_dir=config.run_dir or f"checkpoints/{choices.model}-{corpus_name(config)}{many}")


def _unknown_option(key: str, known: list[str], choices: Choices) -> ConfigError:
    """The error for an option that does not exist, or that belongs to other presets of its group."""
    owners: dict[str, list[str]] = {}
    for group, presets in PRESETS.items():
        for name, (kind, _) in presets.items():
            for option in () if isinstance(kind, str) else map(kind.key, kind.model_fields):
                owners.setdefault(option, []).append(f"{group}={name}")
    if key not in owners:
        return unknown("option", key, known, [*owners])
    group = key.partition(".")[0]
    return ConfigError(f"{key}= is for {' or '.join(owners[key])}, not for {group}={getattr(choices, group)}")


def _check_given(config: Config, given: set[str]) -> None:
    """Raises: ConfigError if an option was given that has no meaning beside the others."""
    names = config.choices
    for unused, reason in _unused(config):
        for name in unused:
            default = type(config.model).model_fields[name].default
            if (key := config.model.key(name)) in given and getattr(config.model, name) != default:
                raise ConfigError(f"{key}= is for {reason}")
    if config.data.path and "data" in given:
        raise ConfigError(f"data={names.data} and data.path= cannot both be given")
    if names.trainer != "sgd":
        for key in sorted(given):
            if key.partition(".")[0] == "optimizer":
                raise ConfigError(f"{key}= is for trainer=sgd; trainer={names.trainer} has no optimizer")


def _unused(config: Config) -> Iterator[tuple[Sequence[str], str]]:
    """The options of the model that change nothing beside its others, and what they are for."""
    model, name = config.model, config.choices.model
    if isinstance(model, BabyGPTConfig):
        if not model.n_layer:
            yield BabyGPTConfig.OF_BLOCKS, f"models with blocks; model={name} has none (model.n_layer=0)"
        elif not model.feed_forward:
            reason = f"models with a feed-forward; model={name} has none (model.feed_forward=0)"
            yield ("activation", "gated"), reason
        if model.position != "rotary":
            yield ("rotary_base",), "model.position=rotary"
        if model.norm == "none" and not model.qk_norm:
            yield ("norm_eps",), f"models with norms; model={name} has none (model.norm=none)"
    if isinstance(model, NGramConfig) and model.arpa:
        yield ("order", "discounts"), "counting; the n-grams of model.arpa= are taken as they are"


def corpus_name(config: Config) -> str:
    """The name of a run's corpus: that of its text file or of the `data` preset."""
    return documents.corpus_name(config.data.path) if config.data.path else config.choices.data


def read_options(kind: type[Flat], argv: list[str]) -> Flat:
    """The options of a command other than `train`. Raises: ConfigError as `load_config` does."""
    arguments, known = parse_arguments(argv), []
    options = _build(kind, {}, arguments, known)
    if arguments:
        raise unknown("option", min(arguments), known)
    return options


def arguments_of(config: Config) -> dict[str, Any]:
    """The fewest options that give this config, without where the run is: what a run keeps as `config.yaml`.

    Options of the model that change nothing are left out.
    """
    given = {"model": config.choices.model}
    for group in GROUPS[1:]:
        implied = load_config([f"{key}={value}" for key, value in given.items()]).choices
        if (name := getattr(config.choices, group)) != getattr(implied, group):
            given[group] = name
    implied = {
        key: value for key, value, _ in options_of(load_config([f"{key}={value}" for key, value in given.items()]))
    }
    unused = {config.model.key(name) for names, _ in _unused(config) for name in names}
    for key, value, _ in options_of(config):
        if key.partition(".")[0] not in OF_PLACE and value != implied[key] and key not in unused:
            given[key] = "" if value is None else value
    return given


def config_to_dict(config: Config) -> dict[str, Any]:
    """A config as nested dictionaries of JSON values, without the options `OF_PLACE`."""
    return config.model_dump(exclude=set(OF_PLACE), serialize_as_any=True)


def config_from_dict(values: Any) -> Config:
    """The inverse of `config_to_dict`. Raises: ConfigError if an option is missing, unknown or invalid."""
    try:
        choices = Choices(**values["choices"])
        rest = {key: value for key, value in values.items() if key != "choices" and key not in PRESETS}
        groups = {group: expand(group, getattr(choices, group))[0](**values[group]) for group in PRESETS}
        nested = {
            name: type(field.default)(**rest.pop(name))
            for name, field in Config.model_fields.items()
            if isinstance(field.default, Options) and name in rest
        }
        return Config(choices=choices, **groups, **nested, **rest)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the configuration is incomplete ({type(error).__name__}: {truncated(str(error))})"
        ) from None


def differences(ours: Config, theirs: Config) -> list[str]:
    """The options in which two runs differ so that one cannot continue the other: "key is A there, B here".

    `train.steps` is among them if the learning rate has a schedule, since that ends with the last step, and for random
    windows, which are counted once.
    """
    names = [
        f"{group} is {there} there, {here} here"
        for group in GROUPS
        if group != "data" and (there := getattr(theirs.choices, group)) != (here := getattr(ours.choices, group))
    ]
    bound = {"train.steps"} if steps_are_bound(ours) else set()
    there = {key: value for key, value, _ in options_of(theirs)}
    return names or [
        f"{key} is {truncated(there[key])} there, {truncated(value)} here"
        for key, value, field in options_of(ours)
        if key in there and (key in bound or not field.json_schema_extra["free"]) and not _same(key, value, there[key])
    ]


def _same(key: str, ours: Any, theirs: Any) -> bool:
    # A path can be written in many ways.
    if key in ("train.grow_from", "model.parts", "model.arpa", TOKENIZER) and ours and theirs:
        ours, theirs = ([user_path(path, ConfigError) for path in paths.split(",")] for paths in (ours, theirs))
    return ours == theirs


def steps_are_bound(config: Config) -> bool:
    """Whether a finished run cannot go on with more steps."""
    windows = isinstance(config.model, BigramConfig) and config.model.counting == "windows"
    return windows or config.optimizer.schedule != "constant"
