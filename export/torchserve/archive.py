"""Packs a model folder into an archive for TorchServe.

    <name>.mar
      handler.py             the module that TorchServe runs
      model-config.yaml      its batching, and what the handler is to do
      model/                 the model folder as it is: its checksums and golden examples hold there too
      service/ model_store/ proto/ export/    the modules that the handler uses

An archive thus answers alike on every machine; it needs the serving install, PyTorch and TorchServe there.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from export.torchserve import handler
from model_store.folder import TORCHSCRIPT, FoundFolder, ModelFolder, read, scan

Runtime = Literal["torchscript", "onnx"]


class ArchiveRefused(ValueError):
    """The folder cannot be packed; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """TorchServe's settings for a model's batches and workers.

    Attributes:
        batch_size: maximum number of requests in a worker's batch.
        max_batch_delay_ms: how long the front end waits for a full batch.
        workers: processes, each with a copy of the weights; one per device is enough.
        threads: threads of a worker's engine calls; 0: one for each core.
    """

    batch_size: int = 32
    max_batch_delay_ms: int = 5
    workers: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            ArchiveRefused: an option is beyond its limit.
        """
        for name, least in (("batch_size", 1), ("max_batch_delay_ms", 0), ("workers", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise ArchiveRefused(f"{name} must be at least {least}, not {getattr(self, name)}")


def newest_models(store: Path) -> dict[str, FoundFolder]:
    """Return the highest versions that have a manifest, by name; a bare graph has no task."""
    found = {each.name: each for each in scan(store) if each.problem is None}
    return {name: each for name, each in found.items() if (each.path / "manifest.json").exists()}


def archive(found: FoundFolder, into: Path, batching: Batching, runtime: Runtime | None = None) -> Path:
    """Pack a model folder for TorchServe.

    Args:
        found: the model folder.
        into: the folder for `<name>.mar`.
        batching: the settings of batches and workers.
        runtime: the engine; None takes TorchScript where the folder has it, else ONNX Runtime.

    Returns:
        the archive.

    Raises:
        FolderError: the folder is damaged.
        ArchiveRefused: the folder has no manifest, or lacks the requested graph.
    """
    folder = read(found)
    if folder.manifest is None:
        raise ArchiveRefused(f"{found.name} is a bare ONNX graph; an archive needs a manifest with a task")
    has_torchscript = TORCHSCRIPT in folder.manifest.files
    if runtime == "torchscript" and not has_torchscript:
        raise ArchiveRefused(f"{found.name} has no {TORCHSCRIPT} (quantized and translation models have only ONNX)")
    runtime = runtime or ("torchscript" if has_torchscript else "onnx")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        contents = Path(temporary) / "contents"
        _lay_out(folder, contents)
        config = Path(temporary) / "model-config.yaml"
        config.write_text(json.dumps(_config_of(batching, runtime), indent=2) + "\n")  # JSON is YAML
        # The archiver writes under the archive's name, so it works beside the archives: a full disk leaves the old one.
        with tempfile.TemporaryDirectory(dir=into, prefix=".packing-") as packed:
            _pack(folder, contents, config, Path(packed))
            (Path(packed) / f"{found.name}.mar").replace(into / f"{found.name}.mar")
    return into / f"{found.name}.mar"


def _config_of(batching: Batching, runtime: Runtime) -> dict[str, object]:
    return {
        "minWorkers": batching.workers,
        "maxWorkers": batching.workers,
        "batchSize": batching.batch_size,
        "maxBatchDelay": batching.max_batch_delay_ms,
        "responseTimeout": 120,
        "startupTimeout": 120,
        "deviceType": "gpu" if runtime == "torchscript" else "cpu",
        "heed": {"runtime": runtime, "threads": batching.threads, "max_rows": batching.batch_size},
    }


def _lay_out(folder: ModelFolder, contents: Path) -> None:
    """Lay out the archive's files, except those that the archiver itself writes."""
    shutil.copytree(folder.path, contents / handler.MODEL_FOLDER)
    left_out = shutil.ignore_patterns("__pycache__", "transport", "monitoring", "Dockerfile")
    shutil.copytree(str(files("service")), contents / "service", ignore=left_out)
    modules = {
        "model_store": "*.py",
        "proto": "__init__.py onnx_graph_pb2.py",
        "export": "__init__.py",
        "export.torchserve": "__init__.py torchscript_engine.py",
    }
    for package, patterns in modules.items():
        target = contents / package.replace(".", "/")
        target.mkdir()
        for pattern in patterns.split():
            for module in Path(str(files(package))).glob(pattern):
                shutil.copy(module, target)


def _pack(folder: ModelFolder, contents: Path, config: Path, into: Path) -> None:
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--force"]
    command += ["--model-name", folder.name, "--version", str(folder.version), "--handler", str(handler.__file__)]
    command += ["--config-file", str(config), "--extra-files", str(contents), "--export-path", str(into)]
    # The archiver first removes <temporary folder>/<model name>, whatever it holds.
    environment = os.environ | {"TMPDIR": str(config.parent)}
    packed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if packed.returncode:
        raise ArchiveRefused(f"torch-model-archiver: {(packed.stderr.strip() or 'failed').splitlines()[-1]}")
