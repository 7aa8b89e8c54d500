"""The mean of the weights of several runs of text classification: one network instead of an ensemble.

Runs that began with the same pre-trained weights and differ in their seed or settings mostly end in one valley of the
loss, and the mean of their weights lies deeper in it than each of them (Wortsman et al. 2022, "Model soups", arXiv
2203.05482: the uniform soup). It costs no more to serve than one of them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.data import TextClassificationData
from export.provenance import commit_of_this_tree, hardware, this_command
from export.run_folder import RESULT, SHAPE, halve_weights, is_finished, read_result
from export.train_text_classifier import measure
from export.trainer import WEIGHTS, this_device


def average_runs(
    members: list[Path], run_dir: Path, data: TextClassificationData, console: Console, command: str = ""
) -> None:
    """Make the run folder of the mean: as a training's, with `mean_of` in its record and no history.

    Args:
        members: run folders, at least two.
        run_dir: the folder to make.
        data: what the mean is measured on.
        console: for what came out.
        command: that makes the same, for the record; "" for the one that runs now.

    Raises:
        FileNotFoundError: a member is not finished.
        ValueError: fewer than two members, another task, or members of different shape, tokenizer or labels.
    """
    if is_finished(run_dir):
        console.print(f"{run_dir} holds a finished run; remove the folder, or name another, to make it again")
        return
    records = {member: read_result(member) for member in members}
    check_members(records)
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in (SHAPE, "tokenizer.json"):
        shutil.copyfile(members[0] / name, run_dir / name)
    save_file(mean_of([load_file(member / WEIGHTS) for member in members]), run_dir / WEIGHTS)
    halve_weights(run_dir)
    first = records[members[0]]
    result = measure(run_dir, data, this_device()) | {
        "num_training_examples": max(record["num_training_examples"] for record in records.values()),
        "bf16": any(record["bf16"] for record in records.values()),
        "mean_of": [member.name for member in members],
        "num_parameters": first["num_parameters"],
        "training_s": round(sum(record["training_s"] for record in records.values()), 1),
        "command": command or this_command(),
        "commit": commit_of_this_tree(),
        "hardware": hardware(this_device()),
        "torch": str(torch.__version__),
        "config": first["config"],
        "history": [],
    }
    (run_dir / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    for member, record in records.items():
        console.print(f"{member.name}: accuracy {record['quality']['accuracy']:.4f}")
    console.print(f"the mean of their weights: accuracy {result['quality']['accuracy']:.4f}; {run_dir / RESULT}")


def check_members(records: dict[Path, dict[str, Any]]) -> None:
    """Raises ValueError: the weights of these runs have no mean that would make sense."""
    members = list(records)
    if len(members) < 2:
        raise ValueError("a mean needs at least two runs")
    for member, record in records.items():
        if record["task"] != "text-classification":
            raise ValueError(f"{member} is a run of {record['task']}; only those of text-classification are averaged")
        for name in (SHAPE, "tokenizer.json"):
            if (member / name).read_bytes() != (members[0] / name).read_bytes():
                raise ValueError(f"{member / name} differs from {members[0] / name}: their weights have no mean")
        if record["labels"] != records[members[0]]["labels"]:
            raise ValueError(f"{member} has other labels than {members[0]}")


def mean_of(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor over several networks of one shape; float32."""
    return {name: torch.stack([each[name].float() for each in weights]).mean(0) for name in weights[0]}
