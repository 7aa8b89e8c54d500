"""Training on data of one's own: the request of the command line, the recipe for it, and the run folder's data record.

    files ──> splits (`export/data/own`) ──> recipe by the number of rows, or the given one ──> the task's training

The run folder keeps `data.json`, the record of sources and splits: a run goes on only with the same rows, and what is
measured or converted later reads the same held-out rows again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from export.data.own.documents import check_same_splits
from export.data.own.labels import REGRESSION
from export.finished_runs import is_finished
from export.recipes.files import find_recipe
from export.tasks.settings import keys_of, with_changes
from export.tasks.task import OwnOptions, TrainedTask, trained_task_of
from export.training.run_folder import sole_trainer
from export.whole_files import write_text

DATA = "data.json"  # in the run folder


@dataclass(frozen=True, kw_only=True)
class OwnRun:
    """A training run on data of one's own.

    Attributes:
        task: the name of the task.
        options: where the data is, and what its columns are called.
        start_from: "scratch", "minilm", the folder of an encoder, or "" for the recipe's choice.
        recipe: the name or file of a recipe, or "" for one that suits the number of rows.
        changes: NAME=VALUE, as `--set` gives them.
    """

    task: str
    options: OwnOptions
    start_from: str = ""
    recipe: str = ""
    changes: tuple[str, ...] = ()


def train_own(own: OwnRun, run_dir: Path, console: Console, time_budget_s: float) -> bool:
    """Train or resume a run on data of one's own; return whether it is finished.

    Raises:
        ValueError: the data cannot be used, a setting does not exist, or the folder holds another run.
        RunIsBusyError: another process trains it.
        FileNotFoundError: a file is missing.
    """
    task = trained_task_of(own.task)
    check_options(own.options, task)
    if is_finished(run_dir):
        console.print(f"{run_dir} has a finished run; to train again, remove the folder or name another one")
        return True
    data = task.load_own(own.options)
    for sentence in [what_is_there(data), *data.document["notes"]]:
        console.print(sentence, soft_wrap=True, highlight=False)
    recipe, why = own.recipe, "it was asked for"
    if not recipe:
        recipe, why = task.recipe_for(data, own.start_from)
    console.print(f"recipe {recipe}: {why}", soft_wrap=True, highlight=False)
    found = find_recipe(recipe)
    if found.task != own.task:
        raise ValueError(f"the recipe {recipe} is for {found.task}, not for {own.task}")
    config = task.configuration(found)
    # Networks that are always trained from scratch have no such setting.
    sets_start = own.start_from and "start_from" in keys_of(config)
    changes = [f"start_from={own.start_from}"] if sets_start else []
    config = with_changes(config, [*changes, *own.changes])
    with sole_trainer(run_dir):
        keep_data_record(run_dir, data.document)
        return task.train(data, config, run_dir, console, time_budget_s, "")


def check_options(options: OwnOptions, task: TrainedTask[Any, Any]) -> None:
    """Raises ValueError: an option is given that the task has no use for."""
    taken = {"data", "validation", "test", "skip_bad_rows", "licence", *task.own_options}
    for field in fields(options):
        if field.name not in taken and getattr(options, field.name) is not None:
            known = ", ".join(f"--{name.replace('_', '-')}" for name in task.own_options) or "no such options"
            raise ValueError(f"--{field.name.replace('_', '-')} is not for {task.name}; it takes {known}")


def what_is_there(data: Any) -> str:
    """Say in a sentence what data has been read: labels, rows by split, and the problem."""
    document = data.document
    rows = ", ".join(f"{split} {about['rows']:,}" for split, about in document["splits"].items())
    names = document["labels"]
    labels = f"{len(names)} label{'s' * (len(names) != 1)}, " if names else ""
    problem = document.get("problem")
    if problem and problem["kind"] == REGRESSION:
        labels = f"numbers in {names[0]!r}, "
    reason = f"; {problem['kind']}, because {problem['reason']}" if problem else ""
    return f"{data.name}: {labels}{rows} rows{reason}"


def keep_data_record(run_dir: Path, document: dict[str, Any]) -> None:
    """Write the record of the data into the run folder, or compare it with the one of the run's begin.

    Raises:
        ValueError: the run was begun with other rows.
    """
    path = run_dir / DATA
    if path.is_file():
        try:
            check_same_splits(json.loads(path.read_text()), document)
        except ValueError as error:
            raise ValueError(f"{run_dir} was begun with other data: {error}; name another run with --name") from error
    else:
        write_text(path, json.dumps(document, indent=2) + "\n")


def about_files(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what manifest and card say of data of one's own: licence, files with their sha256, rows by split."""
    sources = document["files"].values()
    files = [f"{each['name']} ({each['rows']:,} rows, sha256 {each['sha256']})" for each in sources]
    rows = [f"{split} {record['rows']:,}" for split, record in document["splits"].items()]
    return {"licence": document["licence"], "data_files": "; ".join(files), "rows": ", ".join(rows)}
