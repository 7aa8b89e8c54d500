"""`python -m export train | convert | load | untrained`: from data to a model folder."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from rich.console import Console


def main() -> int:
    """Run one command; its exit status."""
    arguments = parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    # torch takes seconds to import, and `--help` should not.
    from export.convert import ConversionRefused
    from export.hugging_face import LoadRefused

    try:
        {"train": train, "convert": convert, "load": load, "untrained": untrained}[arguments.command](
            arguments, console
        )
    except (
        ConversionRefused,
        LoadRefused,
        FileNotFoundError,
        ConnectionError,
        ValueError,
    ) as error:
        console.print(
            f"{arguments.command}: {error}",
            style="bold red",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m export",
        description="From training data to a served model folder.",
    )
    commands = root.add_subparsers(dest="command", required=True)

    one = commands.add_parser(
        "train",
        help="train a model from scratch into a run folder; goes on where it stopped",
    )
    one.add_argument("model", choices=["sentiment"])
    one.add_argument("--run-dir", type=Path, help="default: runs/<model>")
    one.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="change the recipe: a field of TrainConfig, or model.<field> of EncoderConfig",
    )

    one = commands.add_parser("convert", help="turn a finished run into the next version in the model store")
    one.add_argument("model", choices=["sentiment"])
    one.add_argument("--run-dir", type=Path, help="default: runs/<model>")
    add_target_options(one)

    one = commands.add_parser(
        "load",
        help="turn a Hugging Face model into the next version in the model store",
    )
    one.add_argument("source", help="a folder with a saved model, or a hub id")
    one.add_argument("--task", required=True, choices=["text-classification"])
    one.add_argument(
        "--validate-on",
        choices=["sst2"],
        help="labelled data to measure quality on; needed for int8",
    )
    add_target_options(one)

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
    return root


def add_target_options(command: argparse.ArgumentParser) -> None:
    """Options of the commands that write to the model store."""
    command.add_argument("--name", help="of the model in the store; default: that of the model or folder")
    command.add_argument("--model-store", type=Path, default=Path("model_store"))
    command.add_argument("--precision", choices=["float32", "int8"], default="float32")


def train(arguments: argparse.Namespace, console: Console) -> None:
    """Train from scratch."""
    from export.data import load_sst2
    from export.train import TrainConfig, train_text_classifier

    config = with_changes(TrainConfig(), arguments.set)
    train_text_classifier(load_sst2(), config, run_dir_of(arguments), console)


def convert(arguments: argparse.Namespace, console: Console) -> None:
    """Convert a finished run."""
    from export.convert import convert as convert_source
    from export.data import load_sst2
    from export.source import source_of_run

    source = source_of_run(run_dir_of(arguments))
    validation = load_sst2().validation
    convert_source(
        source,
        name=arguments.name or arguments.model,
        store=arguments.model_store,
        compare_on=validation.texts,
        labelled=validation,
        precision=arguments.precision,
        about={"licence": "SST-2: none stated by its authors, research use"},
        console=console,
    )


def load(arguments: argparse.Namespace, console: Console) -> None:
    """Convert a Hugging Face model."""
    from export.convert import MIN_COMPARED_TEXTS
    from export.convert import convert as convert_source
    from export.data import load_sst2
    from export.golden_texts import made_up_sentences
    from export.hugging_face import source_of_hugging_face

    source = source_of_hugging_face(arguments.source)
    labelled = load_sst2().validation if arguments.validate_on == "sst2" else None
    convert_source(
        source,
        name=arguments.name or Path(arguments.source).name,
        store=arguments.model_store,
        compare_on=labelled.texts if labelled else made_up_sentences(MIN_COMPARED_TEXTS),
        labelled=labelled,
        precision=arguments.precision,
        about={},
        console=console,
    )


def untrained(arguments: argparse.Namespace, console: Console) -> None:
    """Write a model with random weights; the defaults have the size of MiniLM."""
    from export.untrained import write_untrained

    write_untrained(
        name=arguments.name or "untrained",
        store=arguments.model_store,
        layers=arguments.layers,
        width=arguments.width,
        heads=arguments.heads,
        vocab_size=arguments.vocab_size,
        tokenizer=arguments.tokenizer,
        precision=arguments.precision,
        packed=not arguments.padded,
        console=console,
    )


def run_dir_of(arguments: argparse.Namespace) -> Path:
    """The run folder that was named, or the model's own."""
    return arguments.run_dir or Path("runs") / arguments.model


def with_changes(config: Any, changes: list[str]) -> Any:
    """A configuration with NAME=VALUE changes; `model.` leads into the network's own.

    Raises:
        ValueError: no such field, or a value of the wrong type.
    """
    for change in changes:
        name, separator, text = change.partition("=")
        inner, dot, rest = name.partition(".")
        if not separator:
            raise ValueError(f"--set takes NAME=VALUE, not {change!r}")
        if dot and inner == "model":
            config = dataclasses.replace(config, model=with_changes(config.model, [f"{rest}={text}"]))
            continue
        known = [field.name for field in dataclasses.fields(config) if field.name != "model"]
        if name not in known:
            raise ValueError(f"--set: {name!r} is not one of {', '.join(known)}")
        config = dataclasses.replace(config, **{name: type(getattr(config, name))(text)})
    return config


if __name__ == "__main__":
    sys.exit(main())
