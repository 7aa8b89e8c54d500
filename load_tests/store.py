"""The models of a store on disk: their folders, tasks and inputs."""

import json
from pathlib import Path
from typing import Any

from load_tests.model_tasks import TASKS, ModelTask

GRAPH, GRAPH_FLOAT16 = "model.onnx", "model.float16.onnx"


def models_of(store: Path) -> list[Path]:
    """Return the folders of all models."""
    return sorted(path.parent.parent for path in store.glob("*/*/manifest.json"))


def version_of(model: Path) -> int:
    """Return the highest version of a model."""
    return max(int(path.name) for path in model.iterdir() if path.name.isdigit())


def manifest_of(store: Path, model: str) -> dict[str, Any]:
    """Read the manifest of a model's highest version."""
    folder = store / model / str(version_of(store / model))
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def task_of(store: Path, model: str) -> ModelTask:
    """Return the task of a model's highest version."""
    return TASKS[manifest_of(store, model)["task"]]


def inputs_of(store: Path) -> dict[str, list[str]]:
    """Return texts for each model that takes texts."""
    tasks = {path.name: task_of(store, path.name) for path in models_of(store)}
    return {model: [*task.inputs] for model, task in tasks.items() if task.input_name == "text"}


def bare_graph(store: Path) -> Path | None:
    """Return the graph to serve without its manifest as well: an image classifier's if there is one, else a text's."""
    tasks = {path: task_of(store, path.name) for path in models_of(store)}
    for wanted in ("pixels", "tokens"):
        for path, task in tasks.items():
            if task.graph_input == wanted:
                return path / str(version_of(path)) / GRAPH
    return None
