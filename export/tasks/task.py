"""The interface of a task of `python -m export`, and the look-up by its name."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from export.closest import closest_first
from export.conversion.comparison.requirements import Precision
from export.conversion.model_folder.task import FolderTask, S
from export.recipes.files import Recipe
from export.task_table import TASKS
from export.tasks.settings import configured
from export.training.trainer import TrainerConfig

Records = dict[str, dict[str, Any]]  # records of finished runs, by the run's name
C = TypeVar("C", bound=TrainerConfig)


@dataclass(frozen=True)
class Target:
    """The model that a conversion writes."""

    name: str
    store: Path
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """The task's section of docs/models.md.

    Attributes:
        place: the position among the sections of all tasks.
        subject: the part of its pictures' file names that tells them from those of other tasks.
        curve_measure: what the learning curves show.
        write: writes the section from the records of runs.
        has_confusion: whether records have a confusion matrix to plot.
    """

    place: int
    subject: str
    curve_measure: str
    write: Callable[[Records], str]
    has_confusion: bool


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """The options of `train --data`, for all tasks; a task refuses those that it has no use for."""

    data: str
    validation: str | None = None
    test: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    problem: str | None = None
    data_target: str | None = None
    validation_target: str | None = None
    test_target: str | None = None
    source_language: str | None = None
    target_language: str | None = None
    source_column: str | None = None
    target_column: str | None = None
    path_column: str | None = None
    entities_column: str | None = None
    tokens_column: str | None = None
    tags_column: str | None = None
    token_column: int | None = None
    tag_column: int | None = None
    skip_bad_rows: bool = False
    licence: str | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of the named options that were given, by name."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def request(self, *names: str) -> dict[str, Any]:
        """Return the arguments of a request for data: those of every task, and the named options that were given."""
        every = ("validation", "test", "licence", *names)
        return {"train": self.data, "skip_bad_rows": self.skip_bad_rows} | self.given(*every)


class ExportTask(FolderTask[S]):
    """A task whose models are loaded from Hugging Face: conversion and quality."""

    validation_sets: Collection[str] = ()  # values of `load --validate-on`
    needs_labels: bool = True  # whether the loss by a lossy precision is measured on labelled inputs

    def check_validation_set(self, name: str) -> None:
        """Check a value of `load --validate-on`.

        Raises:
            ValueError: models of the task are not measured on it.
        """
        if name not in self.validation_sets:
            known = f"one of {', '.join(self.validation_sets)}" if self.validation_sets else "not offered"
            raise ValueError(f"--validate-on {name}: for models of the task {self.name} it is {known}")

    @abstractmethod
    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a Hugging Face model to a version in the store."""

    @abstractmethod
    def material(self, known: Collection[Any]) -> Mapping[str, S] | None:
        """Load splits to measure a model of the store on, from a data set that its manifest names; None if unknown."""


class TrainedTask(ExportTask[S], Generic[S, C]):
    """A task whose models are also trained here: data and networks. `C` is the type of its training settings."""

    networks: Mapping[str, tuple[type[C], type]]  # settings of training and of the network, by the network's name
    report: ReportSection

    def configuration(self, recipe: Recipe) -> C:
        """Make the settings of a recipe.

        Raises:
            ValueError: the task has no such network, or the network or its training no such setting.
        """
        if recipe.network not in self.networks:
            known = ", ".join(closest_first(recipe.network, self.networks))
            raise ValueError(f"{recipe.where}: {self.name} has no network {recipe.network!r}; there are {known}")
        config: C = configured(recipe, *self.networks[recipe.network])
        return config

    @abstractmethod
    def load_data(self, key: str) -> Any:
        """Load a described data set.

        Raises:
            ValueError: the task has no data set with this key.
        """

    own_options: Collection[str] = ()  # fields of `OwnOptions` that the task takes beside those of every task

    def load_own(self, options: OwnOptions) -> Any:
        """Read data of one's own; the result has `document`, the record of its sources and splits.

        Raises:
            ValueError: the task is not offered with own data, or the data cannot be used.
        """
        raise ValueError(f"--data is not offered for {self.name}; give the name of a recipe instead")

    def recipe_for(self, data: Any, start_from: str) -> tuple[str, str]:
        """Choose the name of a recipe for data of one's own, and say why."""
        raise NotImplementedError(f"{self.name} takes no data of one's own")

    @abstractmethod
    def train(self, data: Any, config: C, run_dir: Path, console: Console, time_budget_s: float, command: str) -> bool:
        """Train or resume one run on a loaded data set; return whether it is finished."""

    @abstractmethod
    def measure(self, run_dir: Path, result: Mapping[str, Any], console: Console) -> dict[str, Any]:
        """Measure the weights of a finished run.

        Raises:
            ValueError: it was trained on an unknown data set.
        """

    @abstractmethod
    def convert(self, run_dir: Path, target: Target, console: Console) -> None:
        """Convert a finished run to a version in the store."""


def task_of(name: str) -> ExportTask[Any]:
    """Return a task by its name.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    task: ExportTask[Any] = import_module(TASKS[name]).TASK
    return task


def trained_task_of(name: str) -> TrainedTask[Any, Any]:
    """Return a task whose models are trained here, by its name.

    Raises:
        ValueError: there is no such task, or its models are only loaded.
    """
    task = task_of(name)
    if not isinstance(task, TrainedTask):
        known = ", ".join(each.name for each in trained_tasks())
        raise ValueError(  # noqa: TRY004, a wrong name of a task
            f"models of the task {name!r} are not trained here; those of {known} are"
        )
    return task


def trained_tasks() -> list[TrainedTask[Any, Any]]:
    """Return the tasks whose models are trained here, in the table's order."""
    return [task for task in map(task_of, TASKS) if isinstance(task, TrainedTask)]
