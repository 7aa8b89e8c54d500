"""Recognizes what a command line names: a checkpoint, a model of the hub, an ONNX file, or folders of a model store."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Literal

from model_store.folder import GRAPH, MANIFEST, NAME

# checkpoint  a folder in Hugging Face form, which must be converted
# hub         a checkpoint of the Hugging Face hub, by its id
# onnx        a file with a graph
# version     a folder with `model.onnx`: <store>/<name>/<version>
# model       a folder with versions: <store>/<name>
# store       a folder with models
Kind = Literal["checkpoint", "hub", "onnx", "version", "model", "store"]

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class SourceRefused(ValueError):
    """What a command line names cannot be served; the message says why.

    Attributes:
        exit_status: exit status of the command.
    """

    def __init__(self, message: str, exit_status: int = 2) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True)
class Source:
    """What a command line names.

    Attributes:
        given: the text of the command line.
        kind: what it is.
        path: the file or folder; None for a model of the hub.
        name: name of the model; empty for a store, whose models have names.
    """

    given: str
    kind: Kind
    path: Path | None
    name: str


def recognize(given: str) -> Source:
    """Find out what a command line names; a folder wins over a hub id of the same form.

    Raises:
        SourceRefused: nothing is there, or it is none of the kinds.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        return _recognize_folder(given, path.resolve())
    if path.is_file():
        if path.suffix == ".onnx":
            return _of_graph(given, path.resolve())
        raise SourceRefused(f"{given} is a file; a model is a folder, or a graph in a file that ends in .onnx")
    if HUB_ID.fullmatch(given) and not path.parent.is_dir():  # else a folder of this name is more likely misspelt
        return Source(given, "hub", None, path.name)
    beside = sorted(str(each) for each in path.parent.iterdir() if each.is_dir()) if path.parent.is_dir() else []
    raise SourceRefused(
        f"{given} is not there; folders beside it: {closest(given, beside)} (a model of the Hugging Face hub is named"
        " owner/name)"
    )


def _recognize_folder(given: str, folder: Path) -> Source:
    if (folder / MANIFEST).is_file():
        return Source(given, "version", folder, _name_of(folder))
    has_config = (folder / CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file()
    has_weights = any(True for pattern in WEIGHTS for _ in folder.glob(pattern))
    if has_config and (has_weights or not (folder / GRAPH).is_file()):
        return Source(given, "checkpoint", folder, _name_of(folder))
    if (folder / GRAPH).is_file():
        return Source(given, "version", folder, _name_of(folder))
    graphs = sorted(folder.glob("*.onnx"))
    if len(graphs) == 1:
        return Source(given, "onnx", graphs[0], _name_of(folder))
    if _has_version(folder):
        return Source(given, "model", folder, folder.name)
    if any(_has_version(each) for each in folder.iterdir() if each.is_dir()):
        return Source(given, "store", folder, "")
    files = ", ".join(graph.name for graph in graphs) or f"no {CONFIG}, no {MANIFEST} and no {GRAPH}"
    raise SourceRefused(f"{given} is neither a checkpoint nor a model: it has {files}; give one file or model folder")


def _has_version(folder: Path) -> bool:
    """Whether a folder is a model's: it has a folder with a graph, named by a number."""
    return any(graph.parent.name.isdecimal() for graph in folder.glob(f"*/{GRAPH}"))


def _of_graph(given: str, graph: Path) -> Source:
    """Return the source of a graph; under its usual name the folder is a version, with labels and card."""
    if graph.name == GRAPH:
        return Source(given, "version", graph.parent, _name_of(graph.parent))
    return Source(given, "onnx", graph, graph.stem)


def _name_of(folder: Path) -> str:
    """Return the model's name for a folder: not the number of a version, nor the commit of a hub's snapshot."""
    if folder.name.isdecimal():
        return folder.parent.name
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def checked_name(name: str, given: str) -> str:
    """Return the name of a model.

    Raises:
        SourceRefused: it has characters that are not allowed.
    """
    if not NAME.fullmatch(name):
        raise SourceRefused(
            f"{given}: {name!r} cannot be a model's name, which may have letters, digits, '.', '_' and '-';"
            " give another one with --name"
        )
    return name


def closest(given: str, known: Iterable[str], count: int = 5) -> str:
    """List the known names that are most like the given one, for messages."""
    by_likeness = sorted(known, key=lambda name: -SequenceMatcher(None, given.lower(), name.lower()).ratio())
    return ", ".join(by_likeness[:count]) or "none"
