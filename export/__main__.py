"""Command line: trains, converts and measures models.

`python -m export train | queue | measure | report | convert | explain-graph | half-graphs | measure-batches |
explain | load | untrained | archive`.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from export.command_line import parser
from model_store.folder import NAME, FolderError

NUM_COMPARED_IMAGES = 2_000  # of the 10,000 test images


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
    except (ValueError, FolderError, FileNotFoundError, ConnectionError) as error:  # their messages say what is wrong
        errors.print(
            f"{arguments.command}: {error}",
            style="bold red",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        return 1
    return 0


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
    """Measure the weights of a finished run again."""
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
    """Choose the inputs to prove and measure a run with: its own data set where it is known, else made-up inputs."""
    from export.conversion.comparison.requirements import MIN_COMPARED
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
    from export.conversion.comparison.requirements import MIN_COMPARED
    from export.conversion.golden_texts import made_up_sentences
    from export.conversion.translation import convert_translation
    from export.conversion.translation_source import translation_source_of_run
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
    """Add the graph that explains to versions in the model store."""
    from export.conversion.explanation_graph import add_to_store

    for folder in arguments.folder:
        add_to_store(folder, console)


def half_graphs(arguments: argparse.Namespace, console: Console) -> None:
    """Add the float16 graphs to versions in the model store."""
    from export.conversion.float16 import add_to_store

    for folder in arguments.folder:
        add_to_store(folder, material_of, console)


def measure_batches(arguments: argparse.Namespace, console: Console) -> None:
    """Measure how far answers of versions in the model store depend on the other items of their batch."""
    from export.conversion.sensitivity.batch_sensitivity import add_to_store

    for folder in arguments.folder:
        add_to_store(folder, material_of, console)


def material_of(manifest: Any) -> Any:
    """Load the labelled inputs, or sentences with references, that a model of the store is judged by.

    Raises:
        ValueError: the model names no known data set.
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
    """Load the texts that classifiers are compared with PyTorch and measured on."""
    from export.data.text_classification import load_everyday, load_sst2

    validation = load_sst2().validation
    return {
        "compare_on": validation.texts,
        "labelled": validation,
        "also_measured_on": {"everyday sentences (tests/data)": load_everyday()},
    }


def images_to_measure_on() -> dict[str, Any]:
    """Load the image files that classifiers are compared with PyTorch and measured on, as a client would send them."""
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
    """Return the licence of a run's data and pre-trained weights, as far as it is known."""
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
    from export.conversion.classifier import convert as convert_source
    from export.conversion.comparison.requirements import MIN_COMPARED
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
    from export.conversion.comparison.requirements import MIN_COMPARED
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
    """Return the model's name in the store: `--name`, or the default.

    Raises:
        ValueError: the name has characters that are not allowed.
    """
    name: str = arguments.name or default
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: a model's name may have letters, digits, '.', '_' and '-'")
    return name


def run_dir_of(arguments: argparse.Namespace) -> Path:
    """Return the run folder: `--run-dir`, or `runs/<model>`."""
    return arguments.run_dir or Path("runs") / arguments.model


if __name__ == "__main__":
    # On SIGTERM a command cleans up, as it does on an interrupt.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
