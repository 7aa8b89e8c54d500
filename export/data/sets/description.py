"""Reads the descriptions of data sets: where they are, what their columns are called, and their licence.

A description is a TOML file beside this module. Recipes name it by its file; records of runs and manifests name the
data set by its `name`.
"""

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.closest import closest_first
from export.data.hub import source_of

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The description of a data set.

    Attributes:
        key: the name of the file; recipes have it.
        name: the name that records of runs and manifests have.
        task: the task that its rows are for.
        licence: the data set's name and licence, for model cards.
        hub_id: the id on the Hugging Face hub; "" if no hub has these splits.
        folder: the folder in `$HEED_DATASETS`.
        columns: the name of each column, by what it has.
        splits: the name of each split, by what it is for.
        labels: the names of the classes by number, where the data set's own are not to be used.
        validation_rows: rows that are kept back from the end of the training split to validate on.
        also_measured_on: further files of labelled texts in this repository, by their names for model cards.
        source_language: code of the language of the source.
        target_language: code of the language of the target.
        train_on: data sets that this one joins, in the order of their training rows.
        test_on: the same data sets, in the order of their test splits.
    """

    key: str
    name: str
    task: str
    licence: str = ""
    hub_id: str = ""
    folder: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    validation_rows: int = 0
    also_measured_on: dict[str, str] = field(default_factory=dict)
    source_language: str = ""
    target_language: str = ""
    train_on: list[str] = field(default_factory=list)
    test_on: list[str] = field(default_factory=list)

    def read(self) -> Any:
        """Read all splits, as `datasets.load_dataset` returns them.

        Raises:
            FileNotFoundError: `$HEED_DATASETS` lacks the folder, or is not set although no hub has these splits.
        """
        import datasets

        if not self.hub_id and not os.environ.get("HEED_DATASETS"):
            raise FileNotFoundError(f"set HEED_DATASETS to the folder with {self.folder}: its splits are on no hub")
        return datasets.load_dataset(source_of(self.hub_id, self.folder))


def data_set(key: str, task: str) -> DataSet:
    """Return the description with this key.

    Raises:
        ValueError: the task has no such data set; the message lists those that it has.
    """
    known = {each.key: each for each in data_sets(task)}
    if key not in known:
        raise ValueError(f"there is no data set {key!r} for {task}; there are {', '.join(closest_first(key, known))}")
    return known[key]


def data_sets(task: str) -> list[DataSet]:
    """Return the descriptions of a task's data sets, sorted by key."""
    tables = {path.stem: tomllib.loads(path.read_text()) for path in sorted(FOLDER.glob("*.toml"))}
    return [DataSet(key=key, **table) for key, table in tables.items() if table["task"] == task]


def data_set_named(name: str, task: str) -> DataSet | None:
    """Return the description of the data set that a record or a manifest names; None if there is none."""
    return next((each for each in data_sets(task) if each.name == name), None)
