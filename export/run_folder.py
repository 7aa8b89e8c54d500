"""Run folders: what training leaves behind, and how it is read again.

`model.json` is the network's name and shape, `model.safetensors` its best weights, `result.json` the record of a
finished run, `checkpoint.pt` the state of an unfinished one.
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
from safetensors.torch import load_file, save_file
from torch import nn

from export.provenance import hardware, this_command
from export.trainer import CHECKPOINT, WEIGHTS, Trainer, best_epoch

SHAPE, RESULT = "model.json", "result.json"
# The kinds of network of a task: the type of the configuration to its name and class.
Networks = Mapping[type, tuple[str, type[nn.Module]]]


def begin_run(run_dir: Path, config: Any, networks: Networks) -> bool:
    """Make the folder and write the network's shape; False when the run is finished already."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if is_finished(run_dir):
        return False
    shape = {"network": networks[type(config)][0], **dataclasses.asdict(config)}
    (run_dir / SHAPE).write_text(json.dumps(shape, indent=2) + "\n")
    return True


class RunIsBusyError(ValueError):
    """Another process trains in this folder."""


@contextmanager
def sole_trainer(run_dir: Path) -> Iterator[None]:
    """Keep other processes from training in the folder at the same time.

    Raises:
        RunIsBusyError: one does so already.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    folder = os.open(run_dir, os.O_RDONLY)
    try:
        # The system gives the lock back when the process ends, however it ends.
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise RunIsBusyError(f"another process is training in {run_dir}") from error
    finally:
        os.close(folder)


def is_finished(run_dir: Path) -> bool:
    """Whether the folder has the record of a finished run."""
    return (run_dir / RESULT).is_file()


def require_finished(run_dir: Path) -> None:
    """Raises FileNotFoundError: there is no finished run in this folder."""
    if not is_finished(run_dir):
        raise FileNotFoundError(f"{run_dir} holds no finished run: train it first (python -m export train)")


def read_result(run_dir: Path) -> Any:
    """The record of a finished run.

    Raises:
        FileNotFoundError: there is none.
    """
    require_finished(run_dir)
    return json.loads((run_dir / RESULT).read_text())


def read_network(run_dir: Path, networks: Networks) -> Any:
    """The best network of a run, in float32, ready to predict; its shape is its `config`."""
    shape = json.loads((run_dir / SHAPE).read_text())
    name = shape.pop("network")
    kind, network = next((kind, network) for kind, (known, network) in networks.items() if known == name)
    model: Any = network(kind(**shape))
    weights = load_file(run_dir / WEIGHTS)
    model.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    return model.eval()


def halve_weights(run_dir: Path) -> None:
    """Keep the weights in half precision: what is measured, compared and served from then on are the rounded ones."""
    weights = load_file(run_dir / WEIGHTS)
    save_file({name: w.half() if w.is_floating_point() else w for name, w in weights.items()}, run_dir / WEIGHTS)


def end_run(trainer: Trainer, *, command: str, measured: dict[str, Any], console: Console) -> None:
    """Write the record of a finished run, and remove its checkpoint.

    Args:
        trainer: of the run.
        command: that trains the same again; "" for the one that runs now.
        measured: the task, its data and what was found.
        console: for the last line.
    """
    # The shape that was trained: pre-trained weights bring their own.
    config = dataclasses.asdict(trainer.config) | {"model": dataclasses.asdict(trainer.model.config)}
    result = measured | {
        "num_parameters": sum(weight.numel() for weight in trainer.model.parameters()),
        "best_epoch": best_epoch(trainer.history) + 1,
        "training_s": round(trainer.training_s, 1),
        "command": command or this_command(),
        "commit": ", ".join(trainer.commits),
        "hardware": hardware(trainer.device),
        "torch": str(torch.__version__),
        "config": config,
        "history": trainer.history,
    }
    (trainer.run_dir / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    (trainer.run_dir / CHECKPOINT).unlink()
    console.print_json(json.dumps({name: value for name, value in measured.items() if name.startswith("quality")}))
    console.print(f"trained in {trainer.training_s:.0f} s; {trainer.run_dir / RESULT} has the whole record")
