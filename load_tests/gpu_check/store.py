"""The models of a store on disk: their folders, manifests and inputs."""

import json
from pathlib import Path
from typing import Any

from load_tests.material import load_sentences, load_translations

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


def inputs_of(store: Path) -> dict[str, list[str]]:
    """Return texts for each model that takes texts."""
    by_task = {"text-classification": load_sentences().texts, "translation": load_translations().texts}
    tasks = {path.name: manifest_of(store, path.name)["task"] for path in models_of(store)}
    return {model: by_task[task] for model, task in tasks.items() if task in by_task}


def bare_graph(store: Path) -> Path | None:
    """Return the graph to serve without its manifest as well: an image classifier's if there is one, else a text's."""
    tasks = {path: manifest_of(store, path.name)["task"] for path in models_of(store)}
    for wanted in ("image-classification", "text-classification"):
        for path, task in tasks.items():
            if task == wanted:
                return path / str(version_of(path)) / GRAPH
    return None
