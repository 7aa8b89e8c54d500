"""Changes settings of a recipe by KEY=VALUE, as `--set` and the queue of runs give them."""

import dataclasses
import math
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from export.closest import closest_first

NETWORK = "model"  # the field with the network's own settings
# What a value of a type is called in a sentence, and in the list of keys.
KINDS = {
    bool: ("true or false", "true|false"),
    int: ("a whole number", "INTEGER"),
    float: ("a number", "NUMBER"),
    str: ("a text", "TEXT"),
    tuple: ("whole numbers, separated by commas", "INTEGER,..."),
}


def with_changes(config: Any, changes: list[str]) -> Any:
    """Apply KEY=VALUE changes to a configuration; `model.` addresses the network's configuration.

    Raises:
        ValueError: there is no such key, or the value has another type; names the key, and what there is.
    """
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise ValueError(f"--set takes KEY=VALUE, not {change!r}; {_known(config, key)}")
        if key not in keys_of(config):
            raise ValueError(f"--set {key}: there is no such key; {_known(config, key)}")
        name = key.removeprefix(f"{NETWORK}.")
        owner = config if name == key else getattr(config, NETWORK)
        try:
            owner = dataclasses.replace(owner, **{name: _parsed(text, owner, name)})
        except ValueError as error:
            raise ValueError(f"--set {key}: {error}") from error
        config = owner if name == key else dataclasses.replace(config, **{NETWORK: owner})
    return config


def keys_of(config: Any) -> list[str]:
    """List the keys of a configuration, and those of its network with the prefix `model.`."""
    keys = []
    for field in dataclasses.fields(config):
        if field.name == NETWORK:
            keys += [f"{NETWORK}.{key}" for key in keys_of(getattr(config, NETWORK))]
        else:
            keys.append(field.name)
    return keys


def _known(config: Any, key: str) -> str:
    return f"there are {', '.join(map(partial(_with_kind, config), closest_first(key, keys_of(config))))}"


def _with_kind(config: Any, key: str) -> str:
    """Write a key with the kind of its value: epochs=INTEGER."""
    name = key.removeprefix(f"{NETWORK}.")
    owner = config if name == key else getattr(config, NETWORK)
    choices = _choices(owner, name)
    return f"{key}={'|'.join(choices) if choices else KINDS[type(getattr(owner, name))][1]}"


def _choices(owner: Any, name: str) -> tuple[str, ...]:
    """Return the values that a field's type lists, if it does."""
    hint = get_type_hints(type(owner))[name]
    return get_args(hint) if get_origin(hint) is Literal else ()


def _parsed(text: str, owner: Any, name: str) -> Any:
    """Convert the text to the type of the field.

    Raises:
        ValueError: it is not of that type.
    """
    if choices := _choices(owner, name):
        if text not in choices:
            raise ValueError(f"takes one of {', '.join(closest_first(text, choices))}, not {text!r}")
        return text
    kind = type(getattr(owner, name))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        if kind is tuple:
            return tuple(int(number) for number in text.split(","))
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError(f"takes {KINDS[kind][0]}, not {text!r}") from None
    return value
