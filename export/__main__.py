"""From data to models.

`python -m export train | queue | measure | report | convert | explain-graph | half-graphs | measure-batches |
explain | load | untrained | archive`.
"""

import argparse
import math
import re
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from model_store.folder import NAME, FolderError

NUM_COMPARED_IMAGES = 2_000  # of the 10,000 that quality is measured on


def main() -> int:
    """Run one command; its exit status."""
    arguments = parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    errors = Console(stderr=True)
    run = {
        "train": train,
        "queue": queue,
        "measure": measure,
        "report": report,
        "convert": convert,
        "explain-graph": explain_graph,
        "half-graphs": half_graphs,
        "measure-batches": measure_batches,
        "explain": explain,
        "load": load,
        "untrained": untrained,
        "archive": archive,
    }[arguments.command]
    try:
        run(arguments, console)
    except (ValueError, FolderError, FileNotFoundError, ConnectionError) as error:  # each says what is wrong
        errors.print(
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
        help="train a model into a run folder; goes on where it stopped",
    )
    one.add_argument("model", help="name of a recipe: RECIPES in export/train_*.py")
    one.add_argument("--run-dir", type=Path, help="default: runs/<model>")
    one.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="change the recipe: a field of its configuration, or model.<field> of its network's",
    )
    add_time_budget(one)

    one = commands.add_parser("queue", help="train a list of runs in order; what is finished is skipped")
    one.add_argument("--file", type=Path, default=Path(__file__).parent / "queue.toml")
    one.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of the run folders")
    add_time_budget(one)

    one = commands.add_parser("measure", help="measure the weights of a finished run anew, for its record")
    one.add_argument("model", help="the name it was trained under")
    one.add_argument("--run-dir", type=Path, help="default: runs/<model>")

    one = commands.add_parser("report", help="write docs/models.md anew from the records of the runs")
    one.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of the run folders")
    one.add_argument("--docs", type=Path, default=Path("docs"))
    one.add_argument("--model-store", type=Path, default=Path("model_store"))

    one = commands.add_parser("convert", help="turn a finished run into the next version in the model store")
    one.add_argument("model", help="the name it was trained under")
    one.add_argument("--run-dir", type=Path, help="default: runs/<model>")
    add_target_options(one)

    one = commands.add_parser("explain-graph", help="give a version that is in the model store its graph that explains")
    one.add_argument("folder", type=Path, nargs="+", help="<model store>/<name>/<version>")

    one = commands.add_parser("half-graphs", help="give a version that is in the model store its graphs for GPUs")
    one.add_argument("folder", type=Path, nargs="+", help="<model store>/<name>/<version>")

    one = commands.add_parser(
        "measure-batches",
        help="measure how far answers of an int8 version in the model store move with their company in a batch",
    )
    one.add_argument("folder", type=Path, nargs="+", help="<model store>/<name>/<version>")

    one = commands.add_parser(
        "explain",
        help="study what the committed models attend to and how far explanations hold; goes on where it stopped",
    )
    one.add_argument("--model-store", type=Path, default=Path("model_store"))
    one.add_argument("--docs", type=Path, default=Path("docs"))
    one.add_argument("--work", type=Path, default=Path("build/interpretability"), help="figures of single examples")
    one.add_argument("--page-only", action="store_true", help="write the page anew from docs/interpretability.json")
    add_time_budget(one)

    one = commands.add_parser(
        "load",
        help="turn a Hugging Face model into the next version in the model store",
    )
    one.add_argument("source", help="a folder with a saved model, or a hub id")
    one.add_argument("--task", required=True, choices=["text-classification", "image-classification", "translation"])
    one.add_argument(
        "--validate-on",
        choices=["sst2"],
        help="labelled texts to measure quality on; needed for int8",
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
    add_archive(commands)
    return root


def add_archive(commands: Any) -> None:
    """The command that packs model folders for TorchServe."""
    one = commands.add_parser("archive", help="pack models of the store for TorchServe, into <name>.mar")
    one.add_argument("models", nargs="*", metavar="model", help="names in the store; default: all that have a task")
    one.add_argument("--model-store", type=Path, default=Path("model_store"))
    one.add_argument("--into", type=Path, default=Path("build/archives"), help="the folder of the archives")
    one.add_argument("--runtime", choices=["torchscript", "onnx"], help="default: TorchScript where the folder has it")
    for name, default, what in (
        ("batch-size", 32, "requests that a worker gets at once, at most"),
        ("max-batch-delay-ms", 5, "how long the front end waits for them"),
        ("workers", 1, "processes of a model, each with a copy of the weights"),
        ("threads", 0, "of a worker's engine calls; 0: the cores"),
    ):
        one.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default {default})")


def add_target_options(command: argparse.ArgumentParser) -> None:
    """Options of the commands that write to the model store."""
    command.add_argument("--name", help="of the model in the store; default: that of the model or folder")
    command.add_argument("--model-store", type=Path, default=Path("model_store"))
    command.add_argument("--precision", choices=["float32", "float16", "int8"], default="float32")


def add_time_budget(command: argparse.ArgumentParser) -> None:
    """The option that slices long runs."""
    command.add_argument(
        "--time-budget",
        type=seconds_of,
        default=math.inf,
        metavar="8m",
        help="stop after so many s, m or h, with a checkpoint to go on from; default: when it is done",
    )


def seconds_of(text: str) -> float:
    """Seconds of a duration such as 90s, 8m or 1.5h.

    Raises:
        ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of s, m or h, such as 8m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def train(arguments: argparse.Namespace, console: Console) -> None:
    """Train one model."""
    from export.training.runs import Run, train_run

    run_dir = run_dir_of(arguments)
    train_run(Run(run_dir.name, arguments.model, arguments.set), run_dir, console, arguments.time_budget)


def queue(arguments: argparse.Namespace, console: Console) -> None:
    """Train a list of runs."""
    from export.training.runs import read_queue, run_all

    run_all(read_queue(arguments.file), arguments.runs, console, arguments.time_budget)


def measure(arguments: argparse.Namespace, console: Console) -> None:
    """Measure a finished run anew."""
    from export.training.runs import measure_run

    measure_run(run_dir_of(arguments), console)


def report(arguments: argparse.Namespace, console: Console) -> None:
    """Write the page of the models."""
    from export.studies.model_report import report as write_report

    write_report(arguments.runs, arguments.docs, arguments.model_store, console)


def convert(arguments: argparse.Namespace, console: Console) -> None:
    """Convert a finished run."""
    from export.conversion.classifier import convert as convert_source
    from export.conversion.model_source import source_of_run
    from export.training.run_folder import read_result

    if read_result(run_dir_of(arguments))["task"] == "translation":
        convert_translation(arguments, console)
        return
    source = source_of_run(run_dir_of(arguments))
    convert_source(
        source,
        name=name_in_store(arguments, arguments.model),
        store=arguments.model_store,
        precision=arguments.precision,
        about=licence_of(source),
        console=console,
        **material_of_run(source, console),
    )


def material_of_run(source: Any, console: Console) -> dict[str, Any]:
    """What a run is compared with PyTorch and measured on: the data that it was trained on, or nothing with labels."""
    from export.conversion.classifier import MIN_COMPARED
    from export.conversion.golden_images import made_up_images
    from export.conversion.golden_texts import made_up_sentences
    from export.data.image_classification import CIFAR10
    from export.data.text_classification import SST2

    images, data = source.task_name == "image-classification", source.provenance["data"]
    if data == (CIFAR10 if images else SST2):
        return images_to_measure_on() if images else texts_to_measure_on()
    console.print(f"the run was trained on {data!r}, of which nothing is known here: its quality is not measured")
    made_up: Any = made_up_images(MIN_COMPARED) if images else made_up_sentences(MIN_COMPARED)
    return {"compare_on": made_up, "labelled": None}


def convert_translation(arguments: argparse.Namespace, console: Console) -> None:
    """Convert a finished run of translation."""
    from export.conversion.classifier import MIN_COMPARED
    from export.conversion.golden_texts import made_up_sentences
    from export.conversion.translation import convert_translation, translation_source_of_run
    from export.data.translation import ParallelTexts
    from export.training.run_folder import read_result
    from export.training.translation import LOADERS

    result = read_result(run_dir_of(arguments))
    source = translation_source_of_run(run_dir_of(arguments))
    load_data = LOADERS.get(result["config"]["data"])
    data = load_data() if load_data else None
    if data is not None and data.name == result["data"]:
        compare_on, about = data.test, {"licence": data.licence}
    else:
        console.print(f"the run was trained on {result['data']!r}, of which nothing is known here: it is not measured")
        compare_on, about = {"made-up sentences": ParallelTexts(made_up_sentences(MIN_COMPARED), [])}, {}
    convert_translation(
        source,
        name=name_in_store(arguments, arguments.model),
        store=arguments.model_store,
        compare_on=compare_on,
        precision=arguments.precision,
        about=about,
        console=console,
    )


def explain_graph(arguments: argparse.Namespace, console: Console) -> None:
    """Add the graph that explains to versions that are there."""
    from export.conversion.explanation_graph import add_to_store

    for folder in arguments.folder:
        add_to_store(folder, console)


def half_graphs(arguments: argparse.Namespace, console: Console) -> None:
    """Add the graphs in half precision to versions that are there."""
    from export.conversion.float16 import add_to_store

    for folder in arguments.folder:
        add_to_store(folder, material_of, console)


def measure_batches(arguments: argparse.Namespace, console: Console) -> None:
    """Measure how far answers of versions that are there depend on their company."""
    from export.conversion.sensitivity.batch_sensitivity import add_to_store

    for folder in arguments.folder:
        add_to_store(folder, material_of, console)


def material_of(manifest: Any) -> Any:
    """Labelled inputs, or sentences with references, to judge a model of the store by: splits by name.

    Raises:
        ValueError: none are known for its classes, or for the data that it was trained on.
    """
    from export.data.image_classification import CIFAR10, encoded, load_cifar10
    from export.data.text_classification import SST2, load_sst2
    from export.training.translation import LOADERS

    known = {manifest.provenance.get("data"), manifest.provenance.get("measured_on")}
    if manifest.task == "translation":
        for load_data in LOADERS.values():
            if (data := load_data()).name in known:
                return data.test
    elif manifest.task == "image-classification" and CIFAR10 in known:
        return {"test": encoded(load_cifar10().test, "PNG")}
    elif manifest.task == "text-classification" and SST2 in known:
        return {"validation": load_sst2().validation}
    raise ValueError(f"{manifest.name}: nothing is known to judge it by: it names no data set that is known here")


def explain(arguments: argparse.Namespace, console: Console) -> None:
    """Study explanations, and write the page about it."""
    from export.studies.interpretability import explain as study

    if arguments.page_only or study(
        arguments.model_store, arguments.docs, arguments.work, console, arguments.time_budget
    ):
        from export.studies.interpretability_page import write_page

        write_page(arguments.docs, console)


def archive(arguments: argparse.Namespace, console: Console) -> None:
    """Pack models for TorchServe."""
    from export.torchserve.archive import Batching, newest_models
    from export.torchserve.archive import archive as pack

    found = newest_models(arguments.model_store)
    if unknown := [name for name in arguments.models if name not in found]:
        raise ValueError(f"no model with a task: {', '.join(unknown)}; {arguments.model_store} has {', '.join(found)}")
    batching = Batching(
        batch_size=arguments.batch_size,
        max_batch_delay_ms=arguments.max_batch_delay_ms,
        workers=arguments.workers,
        threads=arguments.threads,
    )
    for name in arguments.models or found:
        path = pack(found[name], arguments.into, batching, arguments.runtime)
        console.print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB", soft_wrap=True, highlight=False)


def texts_to_measure_on() -> dict[str, Any]:
    """What text classifiers are compared with PyTorch and measured on."""
    from export.data.text_classification import load_everyday, load_sst2

    validation = load_sst2().validation
    return {
        "compare_on": validation.texts,
        "labelled": validation,
        "also_measured_on": {"everyday sentences (tests/data)": load_everyday()},
    }


def images_to_measure_on() -> dict[str, Any]:
    """The same for image classifiers: files, as a client would send them."""
    from export.data.image_classification import encoded, load_cifar10
    from export.training.image_classifier import JPEG_QUALITY

    test = load_cifar10().test
    plain = encoded(test, "PNG")
    return {
        "compare_on": plain.inputs[:NUM_COMPARED_IMAGES],
        "labelled": plain,
        "split": "test",
        "also_measured_on": {
            f"the test split as JPEG of quality {JPEG_QUALITY}": encoded(test, "JPEG", quality=JPEG_QUALITY)
        },
    }


def licence_of(source: Any) -> dict[str, str]:
    """What the data and the weights of a run come under, as far as it is known."""
    from export.data.image_classification import CIFAR10
    from export.data.text_classification import SST2

    known = []
    if source.provenance["data"] in (CIFAR10, SST2):
        known.append(f"{source.provenance['data']}: none stated by its authors, research use")
    if source.provenance.get("start_from") in ("minilm", "minilm-words"):
        known.append("MiniLM: Apache-2.0")
    return {"licence": "; ".join(known)} if known else {}


def load(arguments: argparse.Namespace, console: Console) -> None:
    """Convert a Hugging Face model."""
    from export.conversion.classifier import MIN_COMPARED
    from export.conversion.classifier import convert as convert_source
    from export.conversion.golden_images import made_up_images
    from export.conversion.golden_texts import made_up_sentences
    from export.conversion.hugging_face import image_source_of_hugging_face, source_of_hugging_face
    from export.data.text_classification import load_sst2

    if arguments.task != "text-classification" and arguments.validate_on:
        raise ValueError(f"--validate-on {arguments.validate_on} is for text classifiers")
    if arguments.precision != "float32" and not arguments.validate_on:
        raise ValueError(
            f"--precision {arguments.precision} needs labelled inputs to measure the loss: --validate-on, for text"
            " classifiers"
        )
    if arguments.task == "translation":
        load_translation(arguments, console)
        return
    labelled, about = None, {}
    if arguments.task == "image-classification":
        source: Any = image_source_of_hugging_face(arguments.source)
        compare_on: Any = made_up_images(MIN_COMPARED)
    else:
        source = source_of_hugging_face(arguments.source)
        if arguments.validate_on == "sst2":
            data = load_sst2()
            if [label.upper() for label in source.labels] != data.label_names:
                classes = ", ".join(source.labels)
                raise ValueError(f"--validate-on sst2 has {', '.join(data.label_names)}; this model has {classes}")
            labelled, about = data.validation, {"measured_on": data.name}
        compare_on = labelled.texts if labelled else made_up_sentences(MIN_COMPARED)
    convert_source(
        source,
        name=name_in_store(arguments, Path(arguments.source).resolve().name),
        store=arguments.model_store,
        compare_on=compare_on,
        labelled=labelled,
        precision=arguments.precision,
        about=about,
        console=console,
    )


def load_translation(arguments: argparse.Namespace, console: Console) -> None:
    """Convert a Hugging Face translation model."""
    from export.conversion.classifier import MIN_COMPARED
    from export.conversion.golden_texts import made_up_sentences
    from export.conversion.marian import source_of_marian
    from export.conversion.translation import convert_translation
    from export.data.translation import ParallelTexts

    convert_translation(
        source_of_marian(arguments.source),
        name=name_in_store(arguments, Path(arguments.source).resolve().name),
        store=arguments.model_store,
        compare_on={"made-up sentences": ParallelTexts(made_up_sentences(MIN_COMPARED), [])},
        precision=arguments.precision,
        about={},
        console=console,
    )


def untrained(arguments: argparse.Namespace, console: Console) -> None:
    """Write a model with random weights; the defaults have the size of MiniLM."""
    from export.conversion.random_weights import write_untrained

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


def name_in_store(arguments: argparse.Namespace, default: str) -> str:
    """What the model is to be called.

    Raises:
        ValueError: it cannot be called so.
    """
    name: str = arguments.name or default
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: a model's name may have letters, digits, '.', '_' and '-'")
    return name


def run_dir_of(arguments: argparse.Namespace) -> Path:
    """The run folder that was named, or the model's own."""
    return arguments.run_dir or Path("runs") / arguments.model


if __name__ == "__main__":
    # A command that is told to end cleans up behind itself, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
