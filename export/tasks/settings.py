"""Makes the settings of a recipe from its file, and changes them by KEY=VALUE, as `--set` and the queue give them."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from export.closest import closest_first
from export.recipes.files import Recipe

NETWORK = "model"  # the field with the network's own settings
# What a value of a type is called in a sentence, and in the list of keys.
KINDS = {
    bool: ("true or false", "true|false"),
    int: ("a whole number", "INTEGER"),
    float: ("a number", "NUMBER"),
    str: ("a text", "TEXT"),
    tuple: ("whole numbers, separated by commas", "INTEGER,..."),
}


# Settings that training takes from the data, for networks that have no default.
FROM_THE_DATA = {"num_labels": 2}


def configured(recipe: Recipe, kind: type, shape: type) -> Any:
    """Make the settings of a recipe: `kind` for its table [training], `shape` for its table [model].

    Raises:
        ValueError: there is no such setting, its value has another type, or one without a default is missing.
    """
    model = _from_table(shape, recipe.model, f"{recipe.where}: [{NETWORK}]", {})
    given = {NETWORK: model} | ({"data": recipe.data} if _has_field(kind, "data") else {})
    return _from_table(kind, recipe.training, f"{recipe.where}: [training]", given)


def _has_field(kind: type, name: str) -> bool:
    return any(field.name == name for field in dataclasses.fields(kind))


def _from_table(kind: type, table: Mapping[str, Any], where: str, given: Mapping[str, Any]) -> Any:
    """Make an instance of `kind` from a table; fields that the recipe must not set come from `given`."""
    hints = get_type_hints(kind)
    settings = {field.name: field for field in dataclasses.fields(kind) if field.name not in (NETWORK, "data")}
    values = {name: value for name, value in given.items() if _has_field(kind, name)}
    for name, value in table.items():
        if name not in settings:
            raise ValueError(f"{where} has no setting {name!r}; it has {', '.join(closest_first(name, settings))}")
        values[name] = _checked(value, hints[name], f"{where} {name}")
    required = [
        name for name, field in settings.items() if field.default is field.default_factory is dataclasses.MISSING
    ]
    values |= {name: FROM_THE_DATA[name] for name in required if name in FROM_THE_DATA and name not in values}
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return a value of a recipe in the type of its field.

    Raises:
        ValueError: it has another type.
    """
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(
                f"{where} takes one of {', '.join(closest_first(str(value), get_args(hint)))}, not {value!r}"
            )
        return value
    kind = get_origin(hint) or hint
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, list) and all(type(number) is int for number in value):
        return tuple(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{where} takes {KINDS[kind][0]}, not {value!r}")
    return value


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
