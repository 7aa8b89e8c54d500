"""The table of tasks: complete entries, and no other module that tells tasks apart by name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from export.conversion.model_folder.task import ExplainedTask
from export.task_table import TASKS
from export.tasks.task import ReportSection, TrainedTask, task_of, trained_tasks
from export.training.trainer import TrainerConfig
from tests.conftest import ROOT

TABLE = ROOT / "export" / "task_table.py"


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_complete(name: str) -> None:
    """Each entry has all fields; its methods are checked when the class is instantiated."""
    task = task_of(name)
    assert task.name == name
    if isinstance(task, TrainedTask):
        assert task.recipes
        assert all(isinstance(config, TrainerConfig) for config in task.recipes.values())
        assert isinstance(task.report, ReportSection)
    if isinstance(task, ExplainedTask):
        assert task.explained_network is not None
    assert task.float16_graphs
    assert task.score_name
    assert task.answers_name


def test_tasks_share_no_recipe_picture_or_place_in_the_report() -> None:
    """A recipe names one task; sections of the report do not overwrite each other."""
    tasks = trained_tasks()
    recipes = [recipe for task in tasks for recipe in task.recipes]
    assert len(recipes) == len(set(recipes))
    assert len({task.report.place for task in tasks}) == len(tasks)
    assert len({task.report.subject for task in tasks}) == len(tasks)


def test_unknown_tasks_are_refused_with_the_known_ones() -> None:
    """The message lists every task of the table."""
    with pytest.raises(ValueError, match=f"there is no task 'haiku'; there are {', '.join(TASKS)}"):
        task_of("haiku")


@pytest.mark.parametrize(
    "module", sorted(set((ROOT / "export").rglob("*.py")) - {TABLE}), ids=lambda path: str(path.relative_to(ROOT))
)
def test_task_names_stand_only_in_the_table(module: Path) -> None:
    """A string that equals a task's name would be a branch outside the table."""
    named = [
        f"{module.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Constant) and node.value in TASKS
    ]
    assert named == []


def test_help_does_not_import_torch() -> None:
    """The table is read without its entries, so that `--help` takes no seconds."""
    code = (
        "import contextlib, sys\nfrom export.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n    main()\nassert 'torch' not in sys.modules"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "load", "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert ",".join(TASKS) in run.stdout
