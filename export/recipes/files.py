"""Reads the files of recipes without importing torch, so that `python -m export --help` is fast.

A recipe is a TOML file: `description`, `task`, `data` (a description in `export/data/sets/`), `network`, and the tables
`[training]` and `[model]` with the settings of training and of the network. The module of the task knows which settings
there are.
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.closest import closest_first
from export.task_table import TASKS

FOLDER = Path(__file__).parent
TEXTS, TABLES = ("description", "task", "data", "network"), ("training", "model")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The contents of a recipe's file.

    Attributes:
        where: the file, for messages.
        description: what the recipe trains.
        task: the name of a task.
        network: the name of a network of the task.
        data: the key of a data set; "" for a recipe that is for any data.
        training: settings of training; those that are not given have the defaults of the task.
        model: settings of the network.
    """

    where: str
    description: str
    task: str
    network: str
    data: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


def read_recipe(path: Path) -> Recipe:
    """Read the file of a recipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a recipe; names the file, the field, and what there is.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    for name, value in table.items():
        if name not in (*TEXTS, *TABLES):
            known = ", ".join(closest_first(name, (*TEXTS, *TABLES)))
            raise ValueError(f"{path}: a recipe has no field {name!r}; it has {known}")
        if not isinstance(value, str if name in TEXTS else dict):
            raise ValueError(f"{path}: {name} must be a {'text' if name in TEXTS else 'table'}, not {value!r}")  # noqa: TRY004, a mistake in a file
    if missing := [name for name in ("task", "network") if name not in table]:
        raise ValueError(f"{path} has no {' and no '.join(missing)}")
    if table["task"] not in TASKS:
        raise ValueError(f"{path}: there is no task {table['task']!r}; there are {', '.join(TASKS)}")
    return Recipe(where=str(path), **{"description": f"the recipe {path}"} | table)


def built_in_recipes() -> dict[str, Recipe]:
    """Read all recipes of this repository; by name, sorted by task and then by name."""
    recipes = {path.stem: read_recipe(path) for path in sorted(FOLDER.glob("*.toml"), key=lambda path: path.stem)}
    order = list(TASKS)
    return dict(sorted(recipes.items(), key=lambda entry: order.index(entry[1].task)))


def find_recipe(name_or_file: str) -> Recipe:
    """Read a recipe of this repository by its name, or any other by its file, which ends with `.toml`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such name, or the file is not a recipe.
    """
    return read_recipe(Path(name_or_file)) if name_or_file.endswith(".toml") else built_in_recipe(name_or_file)


def built_in_recipe(name: str) -> Recipe:
    """Read the recipe of this repository with this name.

    Raises:
        ValueError: there is none; lists all of them, closest first.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.toml"))
    if name not in known:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(closest_first(name, known))}")
    return read_recipe(FOLDER / f"{name}.toml")
