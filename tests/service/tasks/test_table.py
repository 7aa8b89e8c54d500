"""The table of tasks: every entry is complete, and the rest of the service asks no model for its type."""

import ast
from pathlib import Path

import pytest

from service.tasks.explainable import Explainable
from service.tasks.raw_tensors import RawTensors
from service.tasks.stored_task import StoredTask
from service.tasks.table import TASKS
from service.tasks.task import Task
from tests.conftest import ROOT

MAX_TYPE_CHECKS = 5
# Types of tasks and batchers, whose instances the rest of the service treats alike.
TYPES = {task.__name__ for task in TASKS.values()} | {
    "RawTensors",
    "Classifier",
    "Batcher",
    "ContinuousBatcher",
    "kind",
}


def members(protocol: type) -> set[str]:
    """Return the public members of a protocol, inherited ones included."""
    found = set[str]()
    for base in protocol.__mro__:
        found |= {name for name in (*vars(base), *getattr(base, "__annotations__", {})) if not name.startswith("_")}
    return found


@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_the_table_is_complete(name: str) -> None:
    """It has each member of the protocols, under the name by which manifests know it."""
    task = TASKS[name]
    assert task.name == name
    present = set(dir(task)) | {"inputs", "outputs", "labels", "max_length"}  # set by constructors
    wanted = members(StoredTask) | (set() if task.explainable is None else members(Explainable))
    assert wanted <= present
    assert task.golden_searches


def test_bare_graphs_have_a_task_outside_of_the_table() -> None:
    """Its name is in no manifest, and its answers cannot be explained."""
    assert RawTensors.name not in TASKS
    assert members(Task) <= set(dir(RawTensors)) | {"inputs", "outputs", "optional_inputs"}
    assert RawTensors.explainable is None


def other_modules() -> list[Path]:
    """Return the modules of the service outside the room of the tasks."""
    service = ROOT / "service"
    return [path for path in sorted(service.rglob("*.py")) if service / "tasks" not in path.parents]


def test_no_other_module_names_a_task() -> None:
    """A string with a task's name would have to be changed for a new task."""
    names = {*TASKS, RawTensors.name}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in other_modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert found == []


def test_other_modules_hardly_ask_for_the_type_of_a_task_or_batcher() -> None:
    """Each question of that kind is a branch that a new task would need, too."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in other_modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "isinstance"
        and TYPES & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
    ]
    assert len(found) <= MAX_TYPE_CHECKS, found
