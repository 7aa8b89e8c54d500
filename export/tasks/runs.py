"""Trains lists of runs: a recipe, its changes and a name each."""

import shlex
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from export.closest import closest_first
from export.finished_runs import is_finished
from export.tasks.settings import with_changes
from export.tasks.task import trained_task_of, trained_tasks
from export.training.run_folder import RunIsBusyError, read_result, sole_trainer, write_measured

TASK_OF_RECIPE = {recipe: task for task in trained_tasks() for recipe in task.recipes}


class Run(NamedTuple):
    """One training run."""

    name: str  # name of its folder
    recipe: str
    changes: list[str]  # NAME=VALUE

    @property
    def command(self) -> str:
        """The command that trains only this run."""
        words = ["python", "-m", "export", "train", self.recipe]
        if self.name != self.recipe:
            words += ["--run-dir", f"runs/{self.name}"]
        return shlex.join([*words, "--set", *self.changes] if self.changes else words)


def read_queue(path: Path) -> list[Run]:
    """Read the runs of a TOML file: tables `[[run]]` with `name`, `recipe` and optional changes in `set`.

    Raises:
        ValueError: a field is missing, unknown or given twice.
    """
    try:
        entries = tomllib.loads(path.read_text()).get("run")
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} has no tables [[run]]")
    runs = []
    for entry in entries:
        if not {"name", "recipe"} <= entry.keys() <= {"name", "recipe", "set"}:
            raise ValueError(f"{path}: a run has name, recipe and set, not {', '.join(entry)}")
        runs.append(Run(entry["name"], entry["recipe"], entry.get("set", [])))
        try:
            with_changes(recipe_of(runs[-1]), runs[-1].changes)  # fails now, not after hours of training
        except ValueError as error:
            raise ValueError(f"{path}: run {entry['name']!r}: {error}") from error
    if twice := {run.name for run in runs if sum(run.name == other.name for other in runs) > 1}:
        raise ValueError(f"{path}: more than one run is named {', '.join(sorted(twice))}")
    return runs


def recipe_of(run: Run) -> Any:
    """Return the recipe's unchanged configuration.

    Raises:
        ValueError: the recipe does not exist.
    """
    if run.recipe not in TASK_OF_RECIPE:
        known = ", ".join(closest_first(run.recipe, TASK_OF_RECIPE))
        raise ValueError(f"there is no recipe {run.recipe!r}; there are {known}")
    return TASK_OF_RECIPE[run.recipe].recipes[run.recipe]


def train_run(run: Run, run_dir: Path, console: Console, time_budget_s: float) -> bool:
    """Train or resume one run; return whether it is finished.

    Raises:
        ValueError: unknown recipe or change, or the folder holds a run with other settings.
        RunIsBusyError: another process trains it.
        FileNotFoundError: the data or the pre-trained weights are missing.
    """
    config = with_changes(recipe_of(run), run.changes)
    if is_finished(run_dir):
        console.print(f"{run_dir} has a finished run; to train again, remove the folder or name another one")
        return True
    with sole_trainer(run_dir):
        console.print(f"reading the data set of {run.recipe}")
        return TASK_OF_RECIPE[run.recipe].train(config, run_dir, console, time_budget_s, run.command)


def measure_run(run_dir: Path, console: Console) -> None:
    """Measure the weights of a finished run again, with today's code.

    Raises:
        FileNotFoundError: the run is not finished, or the data is missing.
        ValueError: it was trained on an unknown data set.
    """
    result = read_result(run_dir)
    write_measured(run_dir, result, trained_task_of(result["task"]).measure(run_dir, result, console), console)


def run_all(runs: list[Run], folder: Path, console: Console, time_budget_s: float) -> None:
    """Train the runs in order until all are finished or the time is up; skip runs that another process trains."""
    ends_s = time.monotonic() + time_budget_s
    left_to_others = []
    for number, run in enumerate(runs):
        left_s = ends_s - time.monotonic()
        console.rule(f"{run.name} ({number + 1} of {len(runs)})")
        try:
            require_teacher_at_rest(run, folder)
            finished = left_s > 0 and train_run(run, folder / run.name, console, left_s)
        except RunIsBusyError as busy:
            console.print(f"skipped: {busy}")
            left_to_others.append(run.name)
            continue
        if not finished:
            unfinished = sum([not is_finished(folder / run.name) for run in runs])
            console.print(f"the time is up; {unfinished} of {len(runs)} runs are unfinished")
            return
    if left_to_others:
        console.print(f"all but {', '.join(left_to_others)} are finished")
    else:
        console.print(f"all {len(runs)} runs are finished")


def require_teacher_at_rest(run: Run, folder: Path) -> None:
    """Raises RunIsBusyError: the run learns from another that a process is still training."""
    teacher = getattr(with_changes(recipe_of(run), run.changes), "teacher", "")
    if teacher and (folder / teacher).is_dir() and not is_finished(folder / teacher):
        with sole_trainer(folder / teacher):
            pass
