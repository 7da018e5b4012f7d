"""What classes of options are made of: fields with help and range, and errors in one sentence. Nothing imports JAX."""

import difflib
from collections.abc import Sequence
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from babyjax.errors import ConfigError
from babyjax.text import truncated

Some = TypeVar("Some", bound="Options")
MAX_NAMES = 110  # characters of the names that an error lists


def option(default: Any, description: str, *, free: bool = False, **limits: Any) -> Any:
    """A field with help text. A `free` option may differ when a run is continued."""
    return Field(default, description=description, json_schema_extra={"free": free}, **limits)


def size(default: Any, description: str, *, free: bool = False) -> Any:
    """A positive integer option."""
    return option(default, description, free=free, ge=1, le=2e9)


def count(default: Any, description: str) -> Any:
    """A non-negative integer option."""
    return option(default, description, ge=0, le=2e9)


class Options(BaseModel):
    """Base of the config classes. Raises: ConfigError, in one sentence, if a value is invalid."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True, allow_inf_nan=False)
    group: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, values: Any, handler: Any) -> Any:
        try:
            return handler(values)
        except ValidationError as error:
            raise ConfigError(_sentence(cls, error.errors()[0])) from None

    @classmethod
    def key(cls, name: str) -> str:
        """The name of an option as typed, "model.n_embd"."""
        return f"{cls.group}.{name}" if cls.group else name

    def replace(self: Some, **changes: Any) -> Some:
        """Return a validated copy with some options changed."""
        return type(self)(**{**dict(self), **changes})


def unknown(what: str, given: str, known: list[str], elsewhere: Sequence[str] = ()) -> ConfigError:
    """The error for a name that does not exist, with the closest that does, here or `elsewhere`."""
    given = truncated(given)
    group, _, name = given.rpartition(".")
    same_name = [key for key in known if key.rpartition(".")[2] == name]
    longer = [key for key in known if key.startswith(given)]
    # Without the group, which is the same.
    nearby = {key.rpartition(".")[2]: key for key in (*elsewhere, *known) if key.rpartition(".")[0] == group}
    if longer or not nearby:
        close = same_name or difflib.get_close_matches(given, longer or known, n=1)
    else:
        close = same_name or [nearby[each] for each in difflib.get_close_matches(name, nearby, n=1)]
    siblings = [key for key in known if key.rpartition(".")[0] == group]
    if not group or not siblings:  # all there are, or without those of groups if they are too many
        siblings = known if len(", ".join(known)) <= MAX_NAMES else [key for key in known if "." not in key]
    names = ", ".join(siblings)
    if len(names) > MAX_NAMES:
        names = f"{names[: names.rindex(', ', 0, MAX_NAMES)]} and others (babyjax train --help lists all)"
    hint = f"did you mean {close[0]}?" if close else f"choose from {names}"
    return ConfigError(f"unknown {what} {given!r}; {hint}")


def kinds_of(field: Any) -> tuple[Any, ...]:
    """The types of an option, more than one in a union."""
    kind = field.annotation
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def interval_of(field: Any) -> str:
    """The range of a numeric option as written in mathematics, "[0, 1)"; empty if it has none."""
    bounds = {}
    own = [limit for kind in kinds_of(field) for info in getattr(kind, "__metadata__", ()) for limit in info.metadata]
    for limit in [*field.metadata, *own]:
        for name in ("ge", "gt", "le", "lt"):
            if hasattr(limit, name):
                bounds[name] = f"{getattr(limit, name):g}".replace("e+0", "e").replace("e-0", "e-")
    if not bounds:
        return ""
    low = f"[{bounds['ge']}" if "ge" in bounds else f"({bounds['gt']}"
    return f"{low}, {bounds['le']}]" if "le" in bounds else f"{low}, {bounds['lt']})"


def choices_of(field: Any) -> tuple[str, ...]:
    """The words an option may be; empty if any, or none."""
    return tuple(word for kind in kinds_of(field) if get_origin(kind) is Literal for word in get_args(kind))


def _sentence(cls: type[Options], error: Any) -> str:
    """One pydantic error in our words."""
    if not error["loc"]:
        return (
            f"{cls.group or 'the configuration'}={truncated(error.get('input'))} is invalid: expected a {cls.__name__}"
        )
    name, value, kind = str(error["loc"][0]), error.get("input"), error["type"]
    key, field = cls.key(name), cls.model_fields.get(name)
    if field is None:
        return str(unknown("option", key, [cls.key(known) for known in cls.model_fields]))
    if kind == "literal_error":
        return str(unknown(f"value of {key}:", truncated(value), list(choices_of(field))))
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than", "finite_number"):
        return f"{key}={truncated(value)} is out of range; it must lie in {interval_of(field)}"
    return f"{key}={truncated(value)} is invalid: {error['msg'].lower()}"
