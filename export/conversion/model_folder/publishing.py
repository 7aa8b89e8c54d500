"""Completes the folder of a converted model, and moves it into the store."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from torch import nn

from export.conversion.explanation_graph import add_explain_graph, card_of_explanations
from export.conversion.float16 import HalfPrecisionRefused, add_float16_graphs, card_of_half_precision
from export.conversion.model_folder.task import ExplainedTask, FolderTask, S
from export.conversion.sensitivity.batch_sensitivity import card_of_batch_sensitivity
from export.onnx_graphs.import_weights import NotUnderstood, StoredNetwork, stored_network
from export.stopping import raise_if_stopped
from model_store.folder import CARD, Manifest, next_version, write_manifest


def put_into_store(
    folder: Path, manifest: Manifest, task: FolderTask[S], store: Path, card: Callable[[Manifest, int], str]
) -> Path:
    """Write the card and the manifest into a folder that has everything else, and move it to its place as a whole."""
    version = next_version(store, manifest.name)
    (folder / CARD).write_text(
        card(manifest, version)
        + card_of_batch_sensitivity(manifest, task)
        + card_of_half_precision(manifest, task)
        + card_of_explanations(folder, manifest)
    )
    write_manifest(folder, manifest)
    target = store / manifest.name / str(version)
    raise_if_stopped()
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return target


def explain(folder: Path, manifest: Manifest, task: FolderTask[S], module: nn.Module, console: Console) -> None:
    """Add the graph that explains, which only this repository's own Transformers can have.

    Raises:
        ExplainRefused: the graph does not explain the served model.
    """
    if not isinstance(task, ExplainedTask) or not isinstance(module, task.explained_network):
        return
    console.print("exporting the graph that explains, and comparing it with PyTorch")
    try:
        # In other precisions only the graphs have the weights as they are computed with.
        stored = StoredNetwork(module) if manifest.precision == "float32" else stored_network(folder)
    except NotUnderstood as error:
        console.print(f"no graph that explains: {error}")
        return
    console.print(f"explanations: {add_explain_graph(folder, manifest, task, stored).measured}")


def with_half_precision(
    folder: Path, manifest: Manifest, task: FolderTask[S], measured_on: Mapping[str, S], console: Console
) -> Manifest:
    """Add the float16 graphs if they lose little quality; return the manifest with their measures."""
    if manifest.precision == "float16":
        return manifest
    console.print("writing float16 graphs for GPUs, and comparing them with the served graphs")
    try:
        return add_float16_graphs(folder, manifest, task, measured_on, console)
    except HalfPrecisionRefused as error:
        console.print(f"no float16 graphs: {error}")
        return manifest


def card_of_provenance(manifest: Manifest) -> list[str]:
    """Write the card's lines on the model's provenance."""
    return [
        "## Provenance",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in manifest.provenance.items()),
        "",
    ]
