"""Options of `python -m export`: one parser for each command."""

import argparse
import math
import re
from pathlib import Path
from typing import Any

from export.task_table import TASKS
from service.version import installed_version


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    root = argparse.ArgumentParser(
        prog="python -m export",
        description="From training data to a served model folder.",
    )
    root.add_argument("--version", action="version", version=f"heed {installed_version()}")
    commands = root.add_subparsers(dest="command", required=True)
    add_run_commands(commands)
    add_convert(commands)
    add_version_commands(commands)
    add_explain(commands)
    add_load(commands)
    add_random_weights(commands)
    add_archive(commands)
    return root


def add_run_commands(commands: Any) -> None:
    """Add the commands that train models, measure them and report on them."""
    one = commands.add_parser(
        "train",
        help="train a model into a run folder, or resume an unfinished run",
    )
    one.add_argument("model", help="name of a recipe: RECIPES of the modules in export/training/")
    one.add_argument("--run-dir", type=Path, help="default: runs/<model>")
    one.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="change the recipe: a field of its configuration, or model.<field> of its network's",
    )
    add_time_budget(one)

    one = commands.add_parser("queue", help="train a list of runs in order; finished runs are skipped")
    one.add_argument("--file", type=Path, default=Path(__file__).parent / "queue.toml")
    one.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of the run folders")
    add_time_budget(one)

    one = commands.add_parser("measure", help="measure the weights of a finished run again, and update its record")
    one.add_argument("model", help="the name of the trained recipe")
    one.add_argument("--run-dir", type=Path, help="default: runs/<model>")

    one = commands.add_parser("report", help="rewrite docs/models.md from the records of the runs")
    one.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of the run folders")
    one.add_argument("--docs", type=Path, default=Path("docs"))
    one.add_argument("--model-store", type=Path, default=Path("model_store"))


def add_convert(commands: Any) -> None:
    """Add the command that converts a finished run."""
    one = commands.add_parser("convert", help="convert a finished run to the next version in the model store")
    one.add_argument("model", help="the name of the trained recipe")
    one.add_argument("--run-dir", type=Path, help="default: runs/<model>")
    add_target_options(one)


def add_version_commands(commands: Any) -> None:
    """Add the commands that complete or measure versions in the model store."""
    one = commands.add_parser("explain-graph", help="add the graph that explains to versions in the model store")
    one.add_argument("folder", type=Path, nargs="+", help="<model store>/<name>/<version>")

    one = commands.add_parser("half-graphs", help="add float16 graphs for GPUs to versions in the model store")
    one.add_argument("folder", type=Path, nargs="+", help="<model store>/<name>/<version>")

    one = commands.add_parser(
        "measure-batches",
        help="measure how much answers of int8 versions in the model store change with the other items of a batch",
    )
    one.add_argument("folder", type=Path, nargs="+", help="<model store>/<name>/<version>")


def add_explain(commands: Any) -> None:
    """Add the command that studies explanations."""
    one = commands.add_parser(
        "explain",
        help="study attention and explanations of the committed models, or resume an unfinished study",
    )
    one.add_argument("--model-store", type=Path, default=Path("model_store"))
    one.add_argument("--docs", type=Path, default=Path("docs"))
    one.add_argument(
        "--work",
        type=Path,
        default=Path("build/interpretability"),
        help="the folder for the figures of single examples",
    )
    one.add_argument("--page-only", action="store_true", help="only rewrite the page, from docs/interpretability.json")
    add_time_budget(one)


def add_load(commands: Any) -> None:
    """Add the command that converts a Hugging Face model."""
    one = commands.add_parser(
        "load",
        help="convert a Hugging Face model to the next version in the model store",
    )
    one.add_argument("source", help="a folder with a saved model, or a hub id")
    one.add_argument("--task", required=True, choices=list(TASKS))
    one.add_argument(
        "--validate-on",
        choices=["sst2"],
        help="labelled texts to measure quality on; needed for int8",
    )
    add_target_options(one)


def add_random_weights(commands: Any) -> None:
    """Add the command that writes a model with random weights."""
    one = commands.add_parser("untrained", help="write a model with random weights, for measuring speed")
    one.add_argument("--layers", type=int, default=6)
    one.add_argument("--width", type=int, default=384)
    one.add_argument("--heads", type=int, default=12)
    one.add_argument("--vocab-size", type=int, default=30522)
    one.add_argument(
        "--padded",
        action="store_true",
        help="export the graph that computes padding too",
    )
    one.add_argument("--tokenizer", type=Path, default=Path("model_store/sentiment/1/tokenizer.json"))
    add_target_options(one)


def add_archive(commands: Any) -> None:
    """Add the command that packs model folders for TorchServe."""
    one = commands.add_parser("archive", help="pack models of the store into archives for TorchServe, <name>.mar")
    one.add_argument("models", nargs="*", metavar="model", help="names in the store; default: all that have a task")
    one.add_argument("--model-store", type=Path, default=Path("model_store"))
    one.add_argument("--into", type=Path, default=Path("build/archives"), help="the folder of the archives")
    one.add_argument("--runtime", choices=["torchscript", "onnx"], help="default: TorchScript where the folder has it")
    for name, default, what in (
        ("batch-size", 32, "maximum number of requests in a worker's batch"),
        ("max-batch-delay-ms", 5, "how long the front end waits for a full batch"),
        ("workers", 1, "processes for each model, each with a copy of the weights"),
        ("threads", 0, "threads of a worker's engine calls; 0: one for each core"),
    ):
        one.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default {default})")


def add_target_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the commands that write to the model store."""
    command.add_argument(
        "--name", help="the model's name in the store; default: the name of the recipe or of the source folder"
    )
    command.add_argument("--model-store", type=Path, default=Path("model_store"))
    command.add_argument("--precision", choices=["float32", "float16", "int8"], default="float32")


def add_time_budget(command: argparse.ArgumentParser) -> None:
    """Add the option that limits the duration of one call."""
    command.add_argument(
        "--time-budget",
        type=seconds_of,
        default=math.inf,
        metavar="8m",
        help="stop after this time (s, m or h), with a checkpoint to resume from; default: no limit",
    )


def seconds_of(text: str) -> float:
    """Convert a duration such as 90s, 8m or 1.5h to seconds.

    Raises:
        ArgumentTypeError: the text is not a duration.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number with s, m or h, such as 8m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
