"""Options of `python -m export`: one parser for each command."""

import argparse
import math
import textwrap
from pathlib import Path
from typing import Any

from export.option_types import positive, recipe, seconds_of
from export.recipes.files import built_in_recipes
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
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="recipes:\n" + recipe_lines(),
    )
    one.add_argument("model", metavar="RECIPE", type=recipe, nargs="?", help="name of a recipe in the list below")
    one.add_argument("--recipe", metavar="FILE", help="recipe of your own, a .toml file; with --data also a name")
    one.add_argument(
        "--name", metavar="NAME", help="name of the run; default: that of the recipe or of the data's file"
    )
    add_run_dir(one, "folder of the run; default: runs/NAME")
    add_own_data(one)
    one.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change settings of the recipe, such as epochs=10 model.num_layers=4; an unknown key lists all keys",
    )
    add_time_budget(one)

    one = commands.add_parser("queue", help="train a list of runs in order; finished runs are skipped")
    one.add_argument(
        "--file",
        type=Path,
        default=Path(__file__).parent / "queue.toml",
        metavar="FILE",
        help="TOML file with the runs; default: export/queue.toml",
    )
    add_runs(one)
    add_time_budget(one)

    one = commands.add_parser("measure", help="measure the weights of a finished run again, and update its record")
    one.add_argument("model", metavar="RUN", help="name of a finished run: of its recipe, or of its folder in runs/")
    add_run_dir(one, "folder of the run; default: runs/RUN")

    one = commands.add_parser("report", help="rewrite docs/models.md from the records of the runs")
    add_runs(one)
    add_docs(one)
    add_store(one)


def add_own_data(command: argparse.ArgumentParser) -> None:
    """Add the options of training on data of one's own."""
    own = command.add_argument_group("options for your own data")
    own.add_argument("--task", choices=list(TASKS), help="task of the model; with --data")
    own.add_argument(
        "--data",
        metavar="FILE",
        help="training rows: CSV, TSV, JSONL or Parquet, a folder with a folder of images for each label, a CoNLL file,"
        " or the id of a data set on the hub such as owner/name",
    )
    own.add_argument(
        "--validation",
        metavar="FILE",
        help="rows that choose the epoch, the temperature and thresholds; default: a part of the training rows",
    )
    own.add_argument("--test", metavar="FILE", help="rows that figures are reported on; default: a part likewise")
    for name, what, default in (
        ("text", "the texts", "text"),
        ("text-pair", "the second texts of pairs", "none"),
        ("label", "the labels", "label"),
        ("path", "the paths of images", "path"),
        ("entities", "lists of entities", "entities"),
        ("tokens", "lists of words", "tokens"),
        ("tags", "lists of the words' tags", "tags"),
    ):
        own.add_argument(f"--{name}-column", metavar="NAME", help=f"column of {what}; default: {default}")
    for name, default in (("token", "1"), ("tag", "the last one")):
        own.add_argument(
            f"--{name}-column",
            type=positive,
            metavar="N",
            help=f"column of a CoNLL file with the {name}; default: {default}",
        )
    own.add_argument(
        "--problem",
        choices=["single_label_classification", "multi_label_classification", "regression"],
        help="what labels are; default: found from the labels",
    )
    for name, what in (("data", "--data"), ("validation", "--validation"), ("test", "--test")):
        own.add_argument(
            f"--{name}-target", metavar="FILE", help=f"translations of the lines of {what}, if in two files"
        )
    for name, default in (("source", "en"), ("target", "de")):
        own.add_argument(f"--{name}-language", metavar="NAME", help=f"code of the {name} language; default: {default}")
        own.add_argument(f"--{name}-column", metavar="NAME", help=f"column of the {name}; default: the language's code")
    own.add_argument("--skip-bad-rows", action="store_true", help="leave out rows without a text or a label")
    own.add_argument("--licence", metavar="TEXT", help="licence of the data, for the model card; default: not stated")
    own.add_argument(
        "--start-from",
        metavar="NAME",
        help="scratch, minilm (for texts), or the folder of an encoder of texts or images in Hugging Face form;"
        " default: by the task and the number of rows",
    )
    own.add_argument("--class-weights", choices=["balanced"], help="let rare labels weigh more in training")


def add_convert(commands: Any) -> None:
    """Add the command that converts a finished run."""
    one = commands.add_parser("convert", help="convert a finished run to the next version in the model store")
    one.add_argument("model", metavar="RUN", help="name of a finished run: of its recipe, or of its folder in runs/")
    add_run_dir(one, "folder of the run; default: runs/RUN")
    add_target_options(one)


def add_version_commands(commands: Any) -> None:
    """Add the commands that complete or measure versions in the model store."""
    one = commands.add_parser("explain-graph", help="add the graph that explains to versions in the model store")
    add_version_folders(one)

    one = commands.add_parser("half-graphs", help="add float16 graphs for GPUs to versions in the model store")
    add_version_folders(one)

    one = commands.add_parser(
        "measure-batches",
        help="measure how much answers of int8 versions in the model store change with the other items of a batch",
    )
    add_version_folders(one)


def add_explain(commands: Any) -> None:
    """Add the command that studies explanations."""
    one = commands.add_parser(
        "explain",
        help="study attention and explanations of the committed models, or resume an unfinished study",
    )
    add_store(one)
    add_docs(one)
    one.add_argument(
        "--work",
        type=Path,
        default=Path("build/interpretability"),
        metavar="FOLDER",
        help="folder for the figures of single examples; default: build/interpretability",
    )
    one.add_argument("--page-only", action="store_true", help="only rewrite the page, from docs/interpretability.json")
    add_time_budget(one)


def add_load(commands: Any) -> None:
    """Add the command that converts a Hugging Face model."""
    one = commands.add_parser(
        "load",
        help="convert a Hugging Face model to the next version in the model store",
    )
    one.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with a saved model, a hub id such as owner/name, or an ONNX graph of a folder of Optimum",
    )
    one.add_argument("--task", choices=list(TASKS), help="task of the model; default: what its architecture tells")
    one.add_argument(
        "--validate-on",
        metavar="FOLDER",
        help="labelled inputs to measure quality on, needed for int8 of classifiers: sst2 for texts; for images a"
        " folder with a folder for each label, or a table of paths and labels",
    )
    add_target_options(one)


def add_random_weights(commands: Any) -> None:
    """Add the command that writes a model with random weights."""
    one = commands.add_parser("untrained", help="write a model with random weights, for measuring speed")
    for name, default, what in (
        ("layers", 6, "number of layers"),
        ("width", 384, "width of a layer; a multiple of the heads"),
        ("heads", 12, "attention heads of a layer"),
        ("vocab-size", 30522, "pieces of the vocabulary"),
    ):
        one.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=f"{what} (default {default})")
    one.add_argument(
        "--padded",
        action="store_true",
        help="export the graph that computes padding too",
    )
    one.add_argument(
        "--tokenizer",
        type=Path,
        default=Path("model_store/sentiment/1/tokenizer.json"),
        metavar="FILE",
        help="tokenizer of the model; default: that of model_store/sentiment/1",
    )
    add_target_options(one)


def add_archive(commands: Any) -> None:
    """Add the command that packs model folders for TorchServe."""
    one = commands.add_parser("archive", help="pack models of the store into archives for TorchServe, <name>.mar")
    one.add_argument("models", nargs="*", metavar="MODEL", help="names in the store; default: all that have a task")
    add_store(one)
    one.add_argument(
        "--into",
        type=Path,
        default=Path("build/archives"),
        metavar="FOLDER",
        help="folder of the archives; default: build/archives",
    )
    one.add_argument("--runtime", choices=["torchscript", "onnx"], help="default: TorchScript where the folder has it")
    for name, default, what in (
        ("batch-size", 32, "maximum number of requests in a worker's batch"),
        ("max-batch-delay-ms", 5, "milliseconds that the front end waits for a full batch"),
        ("workers", 1, "processes for each model, each with a copy of the weights"),
        ("threads", 0, "threads of a worker's engine calls; 0: one for each core"),
    ):
        one.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default {default})")


def add_target_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the commands that write to the model store."""
    command.add_argument(
        "--name",
        metavar="NAME",
        help="the model's name in the store; default: the name of the recipe or of the source folder",
    )
    add_store(command)
    command.add_argument(
        "--precision",
        choices=["float32", "float16", "int8"],
        default="float32",
        help="precision of the graph's products; default: float32",
    )


def add_time_budget(command: argparse.ArgumentParser) -> None:
    """Add the option that limits the duration of one call."""
    command.add_argument(
        "--time-budget",
        type=seconds_of,
        default=math.inf,
        metavar="TIME",
        help="stop after this time, such as 90s, 8m or 1.5h, with a checkpoint to resume from; default: no limit",
    )


def add_run_dir(command: argparse.ArgumentParser, text: str) -> None:
    """Add the option that names the folder of one run."""
    command.add_argument("--run-dir", type=Path, metavar="FOLDER", help=text)


def add_runs(command: argparse.ArgumentParser) -> None:
    """Add the option that names the folder of all runs."""
    command.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of the run folders; default: runs"
    )


def add_docs(command: argparse.ArgumentParser) -> None:
    """Add the option that names the folder of the pages."""
    command.add_argument(
        "--docs", type=Path, default=Path("docs"), metavar="FOLDER", help="folder of the pages; default: docs"
    )


def add_store(command: argparse.ArgumentParser) -> None:
    """Add the option that names the model store."""
    command.add_argument(
        "--model-store",
        type=Path,
        default=Path("model_store"),
        metavar="FOLDER",
        help="the model store; default: model_store",
    )


def add_version_folders(command: argparse.ArgumentParser) -> None:
    """Add the argument that names versions of models."""
    command.add_argument(
        "folder",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="version of a model, such as model_store/sentiment/1",
    )


def recipe_lines() -> str:
    """List the recipes, one a line, with what each trains."""
    recipes = built_in_recipes()
    width = max(map(len, recipes))
    return textwrap.indent("\n".join(f"{name:<{width}}  {each.description}" for name, each in recipes.items()), "  ")
