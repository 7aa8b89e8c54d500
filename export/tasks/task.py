"""The interface of a task of `python -m export`, and the look-up by its name."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from export.conversion.comparison.requirements import Precision
from export.conversion.model_folder.task import FolderTask, S
from export.task_table import TASKS
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

    recipes: Mapping[str, C]  # by the name of the run
    report: ReportSection

    @abstractmethod
    def train(self, config: C, run_dir: Path, console: Console, time_budget_s: float, command: str) -> bool:
        """Train or resume one run; return whether it is finished."""

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
