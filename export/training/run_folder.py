"""Reads and writes run folders, the results of training.

`model.json` is the network's name and shape, `model.safetensors` its best weights (large ones in parts, as
`model.safetensors.01` and so on), `result.json` the record of a finished run, `checkpoint.pt` the state of an
unfinished one.
"""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load, save
from torch import Tensor, nn

from export.finished_runs import CHECKPOINT, RESULT, is_finished, require_finished
from export.provenance import commit_of_this_tree, this_command
from export.training.trainer import WEIGHTS, Trainer, best_epoch
from export.whole_files import write_bytes, write_text

SHAPE = "model.json"
MAX_FILE_BYTES = 16 * 2**20  # limit of a finished run's files, so that they can be copied from any machine
# The networks of a task: name and class by the type of the configuration.
Networks = Mapping[type, tuple[str, type[nn.Module]]]


def begin_run(run_dir: Path, config: Any, networks: Networks) -> bool:
    """Make the folder and write the network's shape; False when the run is finished already."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if is_finished(run_dir):
        return False
    shape = {"network": networks[type(config)][0], **dataclasses.asdict(config)}
    write_text(run_dir / SHAPE, json.dumps(shape, indent=2) + "\n")
    return True


class RunIsBusyError(ValueError):
    """Another process trains in this folder."""


@contextmanager
def sole_trainer(run_dir: Path) -> Iterator[None]:
    """Keep other processes from training in the folder at the same time.

    Raises:
        RunIsBusyError: another process trains there already.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    folder = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            # The system releases the lock when the process ends, however it ends.
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunIsBusyError(f"another process is training in {run_dir}") from error
        yield
    finally:
        os.close(folder)


def read_result(run_dir: Path) -> Any:
    """Read the record of a finished run.

    Raises:
        FileNotFoundError: there is no finished run.
    """
    require_finished(run_dir)
    return json.loads((run_dir / RESULT).read_text())


def read_network(run_dir: Path, networks: Networks) -> Any:
    """Load the best network of a run, in float32, ready to predict; its shape is its `config`."""
    shape = json.loads((run_dir / SHAPE).read_text())
    name = shape.pop("network")
    kind, network = next((kind, network) for kind, (known, network) in networks.items() if known == name)
    model: Any = network(kind(**shape))
    weights = read_weights(run_dir)
    model.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    return model.eval()


def read_weights(run_dir: Path) -> dict[str, Tensor]:
    """Read the best weights of a run, from one file or from its parts."""
    whole = run_dir / WEIGHTS
    return load(b"".join(path.read_bytes() for path in ([whole] if whole.exists() else _parts(run_dir))))


def _parts(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob(f"{WEIGHTS}.*"))


def halve_weights(run_dir: Path) -> None:
    """Store the weights in float16: everything is measured, compared and served with the rounded ones.

    A file that is too large to copy is split into parts.
    """
    halves = save({name: w.half() if w.is_floating_point() else w for name, w in read_weights(run_dir).items()})
    cuts = range(0, len(halves), MAX_FILE_BYTES)
    names = [WEIGHTS] if len(cuts) == 1 else [f"{WEIGHTS}.{number:02}" for number in range(1, len(cuts) + 1)]
    for name, first in zip(names, cuts, strict=True):
        write_bytes(run_dir / name, halves[first : first + MAX_FILE_BYTES])
    if len(cuts) > 1:
        (run_dir / WEIGHTS).unlink(missing_ok=True)


def end_run(
    trainer: Trainer, *, command: str, about: dict[str, Any], measured: dict[str, Any], console: Console
) -> None:
    """Write the record of a finished run, and remove its checkpoint.

    Args:
        trainer: the trainer of the run.
        command: the command that repeats the training; "" for the one that runs now.
        about: the task, the network and the data.
        measured: the measures of the weights.
        console: shows the last line.
    """
    # The trained shape, because pre-trained weights bring their own.
    shape = trainer.model.config
    assert dataclasses.is_dataclass(shape) and not isinstance(shape, type)
    config = dataclasses.asdict(trainer.config) | {"model": dataclasses.asdict(shape)}
    result = about | {
        "num_parameters": sum(weight.numel() for weight in trainer.model.parameters()),
        "best_epoch": best_epoch(trainer.history) + 1,
        "training_s": round(trainer.training_s, 1),
        "command": command or this_command(),
        "commit": ", ".join(trainer.commits),
        "hardware": ", ".join(trainer.hardware_s),
        "hardware_s": trainer.hardware_s,
        "torch": str(torch.__version__),
        "config": config,
        "history": trainer.history,
    }
    write_measured(trainer.run_dir, result, measured, console)
    (trainer.run_dir / CHECKPOINT).unlink()
    console.print(f"trained in {trainer.training_s:.0f} s; {trainer.run_dir / RESULT} has the whole record")


def write_measured(run_dir: Path, result: Any, measured: dict[str, Any], console: Console) -> None:
    """Write the record of a run with the measures of its weights, which replace earlier ones, and show them.

    Lists, such as the figures of each label, are only in the record.
    """
    result = result | measured | {"measured_at": commit_of_this_tree()}
    write_text(run_dir / RESULT, json.dumps(result, indent=2) + "\n")
    shown = {name: _without_lists(value) for name, value in measured.items() if not isinstance(value, list)}
    console.print_json(json.dumps(shown))


def _without_lists(value: Any) -> Any:
    """Leave lists of more than two entries out of nested figures; two are the ends of an interval."""
    if not isinstance(value, dict):
        return value
    short = {name: each for name, each in value.items() if not (isinstance(each, list) and len(each) > 2)}
    return {name: _without_lists(each) for name, each in short.items()}
