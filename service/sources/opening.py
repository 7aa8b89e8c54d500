"""Makes one model store of everything that a command line names: a folder of links to model folders.

checkpoints, hub ids ── `ConversionCache` ──> model folders ─┐
ONNX files ── copied ──> version folders ────────────────────┼─ links ──> <cache>/stores/<key>/<name>/<version>/
model folders, stores ───────────────────────────────────────┘
"""

import argparse
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_store.folder import GRAPH, LABELS, FolderError, scan
from model_store.private_files import FolderCopy
from service.sources.conversion_cache import KEY_DIGITS, Checkpoint, ConversionCache, default_cache
from service.sources.kinds import Source, SourceRefused, checked_name, recognize

PRECISIONS = ("float32", "float16", "int8")


@dataclass(frozen=True)
class SourceOptions:
    """How models of a command line are named and converted.

    Attributes:
        cache: folder of converted models and of stores of links.
        name: name of the only model; None: the name of its folder.
        task: task of checkpoints; None: as they tell.
        precision: precision of converted graphs.
        validate_on: labelled data to measure conversions on; None: none.
    """

    cache: Path
    name: str | None = None
    task: str | None = None
    precision: str = "float32"
    validate_on: str | None = None


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `SourceOptions` to a command."""
    group = parser.add_argument_group("conversion of checkpoints")
    group.add_argument("--name", metavar="NAME", help="name of the model; default: the name of its folder")
    group.add_argument("--task", metavar="NAME", help="task of a checkpoint; default: what its architecture tells")
    group.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="precision of a converted graph; default: float32"
    )
    group.add_argument("--validate-on", metavar="NAME", help="labelled data to measure a conversion on; int8 needs it")
    group.add_argument(
        "--cache",
        type=Path,
        default=default_cache(),
        metavar="FOLDER",
        help="folder of converted models; default: $XDG_CACHE_HOME/heed or ~/.cache/heed",
    )


def source_options(arguments: argparse.Namespace) -> SourceOptions:
    """Take the options of `add_source_options` out of parsed arguments, which keep the others."""
    given = {name: vars(arguments).pop(name) for name in ("cache", "name", "task", "precision", "validate_on")}
    return SourceOptions(**given)


def open_store(sources: Sequence[str], options: SourceOptions, say: Callable[[str], None]) -> Path:
    """Return a model store with the models that a command line names; checkpoints are converted unless they were.

    Args:
        sources: folders, ONNX files or hub ids; at least one.
        options: how they are named and converted.
        say: prints a line about what is done.

    Raises:
        SourceRefused: a source is not a model, cannot be converted, or has the name of another one.
    """
    found = [recognize(given) for given in sources]
    if options.name is not None and (len(found) > 1 or found[0].kind == "store"):
        raise SourceRefused(f"--name {options.name!r} names one model, not those of {', '.join(sources)}")
    if len(found) == 1 and found[0].kind == "store":
        assert found[0].path is not None
        return found[0].path
    places: dict[Path, Path] = {}
    for source in found:
        try:
            placed = _placed(source, options, say)
        except OSError as error:
            raise SourceRefused(f"{source.given}: {error.strerror}: {error.filename}") from error
        if taken := {path.parts[0] for path in places} & {path.parts[0] for path in placed}:
            raise SourceRefused(f"{source.given}: another source has a model named {', '.join(sorted(taken))} too")
        places |= placed
    try:
        return link_store(places, options.cache)
    except OSError as error:
        raise SourceRefused(
            f"the cache {options.cache} cannot be written ({error.strerror}); name another folder with --cache"
        ) from error


def _placed(source: Source, options: SourceOptions, say: Callable[[str], None]) -> dict[Path, Path]:
    """Return the folders of a source by their places in a store: a model's own, or that of one version."""
    if source.kind == "store":
        assert source.path is not None
        return {Path(found.name): found.path.parent for found in scan(source.path) if not found.problem}
    name = checked_name(options.name or source.name, source.given)
    if source.kind in {"checkpoint", "hub"}:
        checkpoint = Checkpoint(source.given, source.path, name, options.task, options.precision, options.validate_on)
        return {Path(name): ConversionCache(options.cache, say).converted(checkpoint)}
    assert source.path is not None
    if source.kind == "onnx":
        return {Path(name, "1"): graph_folder(source.path, options.cache)}
    if source.kind == "version":
        return {Path(name, source.path.name if source.path.name.isdecimal() else "1"): source.path}
    return {Path(name): source.path}


def graph_folder(graph: Path, cache: Path) -> Path:
    """Return a version folder with a copy of a graph, of its files of weights, and of its `labels.txt`.

    A link to the graph would not do: only files inside a store are read.

    Raises:
        SourceRefused: the graph reads weights from outside of its folder, or a file cannot be read.
        OSError: the cache cannot be written.
    """
    copied = FolderCopy(graph.parent, None)
    try:
        read = copied.graph(graph.name)
        labels = {LABELS: copied.copy(LABELS)} if copied.has(LABELS) else {}
    except FolderError as error:
        raise SourceRefused(f"{graph}: {error}") from error
    files = {GRAPH: read.file, **read.weights, **labels}
    key = hashlib.sha256("".join(f"{name} {file.sha256()}\n" for name, file in sorted(files.items())).encode())
    target = cache / "graphs" / key.hexdigest()[:KEY_DIGITS]

    def fill(folder: Path) -> None:
        for name, file in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as copy, file.mapped() as content:
                copy.write(content)

    _make_once(target, fill)
    return target


def link_store(places: dict[Path, Path], cache: Path) -> Path:
    """Return a store of links, which is made once for the same models.

    Args:
        places: the folders by their places in the store: <name>, or <name>/<version>.
        cache: folder of the cache.

    Raises:
        OSError: the cache cannot be written.
    """
    key = hashlib.sha256("".join(f"{place} {folder}\n" for place, folder in sorted(places.items())).encode())
    target = cache / "stores" / key.hexdigest()[:KEY_DIGITS]

    def fill(store: Path) -> None:
        for place, folder in places.items():
            (store / place).parent.mkdir(exist_ok=True)
            (store / place).symlink_to(folder.resolve(), target_is_directory=True)

    _make_once(target, fill)
    return target


def _make_once(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder under another name and rename it, so that it is whole whenever it is there."""
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix="."))
    try:
        fill(unfinished)
        os.rename(unfinished, target)  # noqa: PTH104, fails where another process was first
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
