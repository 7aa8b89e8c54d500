"""Command line: trains, converts and measures models.

`python -m export train | queue | measure | report | convert | explain-graph | half-graphs | measure-batches |
explain | load | untrained | archive`.
"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.closest import closest_first
from export.command_line import parser
from export.finished_runs import CHECKPOINT, is_finished, require_finished
from export.outcome import FAILED, INTERRUPTED, NOT_INSTALLED, TERMINATED, lacks_space, sentence_of, stopped
from export.stopping import stop_on_signals
from service.version import not_installed

if TYPE_CHECKING:
    from rich.console import Console

    from export.tasks.task import Target


# Options of `train --data` with a value, for any task.
OWN_OPTIONS = (
    *("validation", "test", "text_column", "text_pair_column", "label_column", "problem", "licence"),
    *("data_target", "validation_target", "test_target"),
    *("source_language", "target_language", "source_column", "target_column"),
    *("path_column", "entities_column", "tokens_column", "tags_column", "token_column", "tag_column"),
)


def main() -> int:
    """Run one command; its exit status. What ends it early is said in one sentence."""
    arguments = parser().parse_args()
    try:
        return run(arguments)
    except ModuleNotFoundError as error:
        extra = "torchserve" if arguments.command == "archive" else "train"
        return say(arguments.command, not_installed(error, extra), NOT_INSTALLED)
    except KeyboardInterrupt as stop:
        how, status = stopped(stop)
        return say(arguments.command, f"{how}; {kept_by(arguments)}", status)
    except Exception as error:
        from model_store.folder import FolderError

        if why := lacks_space(error):
            return say(arguments.command, f"{why}; {kept_by(arguments)}, once there is space", FAILED)
        if isinstance(error, ValueError | FolderError | OSError):  # their messages say what is wrong
            return say(arguments.command, sentence_of(error), FAILED)
        raise


def say(command: str, sentence: str, status: int) -> int:
    """Print why a command has ended, in red on a terminal, and return its exit status."""
    red, plain = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}{command}: {sentence}{plain}", file=sys.stderr, flush=True)
    return status


def kept_by(arguments: argparse.Namespace) -> str:
    """Say what a command that ended early has kept, and how to go on."""
    command = arguments.command
    if command == "train":
        return kept_in(run_dir_of(arguments))
    given = vars(arguments)
    if command == "queue":
        return "{runs} keeps finished runs and the last checkpoint; the same command goes on".format(**given)
    if command == "explain":
        return "{work} keeps the figures of finished examples; the same command goes on".format(**given)
    if command in {"convert", "load", "untrained"}:
        kept = "no unfinished version is in {model_store}"
    elif command == "archive":
        kept = "the archives in {into} are whole"
    elif command == "report":
        kept = "the pages in {docs} are whole"
    elif command == "measure":
        kept = "the record of the run is as it was"
    else:
        kept = "the files of a version change together or not at all"
    return kept.format(**given) + "; the same command starts again"


def kept_in(run_dir: Path) -> str:
    """Say what a run folder has, and how to go on."""
    if is_finished(run_dir):
        return f"{run_dir} has the finished run"
    if (run_dir / CHECKPOINT).is_file():
        saved = time.strftime("%H:%M:%S", time.localtime((run_dir / CHECKPOINT).stat().st_mtime))
        return f"{run_dir} keeps its checkpoint of {saved}; the same command resumes from it"
    return f"{run_dir} has no checkpoint yet; the same command starts from the beginning"


def run(arguments: argparse.Namespace) -> int:
    """Run one command; its exit status."""
    from rich.console import Console

    command = {
        "train": train,
        "queue": queue,
        "measure": measure,
        "report": report,
        "convert": convert,
        "explain-graph": explain_graph,
        "half-graphs": float16,
        "measure-batches": measure_batches,
        "explain": explain,
        "load": load,
        "untrained": random_weights,
        "archive": archive,
    }[arguments.command]
    command(arguments, Console(width=None if sys.stdout.isatty() else 140))
    return 0


def train(arguments: argparse.Namespace, console: "Console") -> None:
    """Train one model."""
    run_dir = run_dir_of(arguments)
    if arguments.data:
        train_on_own_data(arguments, run_dir, console)
        return
    recipe = arguments.model or arguments.recipe
    if not recipe or (arguments.model and arguments.recipe):
        raise ValueError("give the name of a recipe, or --recipe FILE, or --task and --data for data of your own")
    for name in ("task", *OWN_OPTIONS, "skip_bad_rows", "start_from", "class_weights"):
        if getattr(arguments, name):
            raise ValueError(f"--{name.replace('_', '-')} is for data of your own: add --data; the recipe has its own")
    from export.tasks.runs import Run, train_run

    train_run(Run(run_dir.name, recipe, arguments.set), run_dir, console, arguments.time_budget)


def train_on_own_data(arguments: argparse.Namespace, run_dir: Path, console: "Console") -> None:
    """Train one model on data of one's own."""
    if arguments.model:
        raise ValueError(f"the recipe {arguments.model} has its own data; with --data, name a recipe with --recipe")
    if not arguments.task:
        raise ValueError("--data needs --task, such as --task text-classification")
    from export.tasks.own.training import OwnRun, train_own
    from export.tasks.task import OwnOptions

    options = OwnOptions(
        data=arguments.data,
        skip_bad_rows=arguments.skip_bad_rows,
        **{name: getattr(arguments, name) for name in OWN_OPTIONS},
    )
    weights = [f"class_weights={arguments.class_weights}"] if arguments.class_weights else []
    own = OwnRun(
        task=arguments.task,
        options=options,
        start_from=arguments.start_from or "",
        recipe=arguments.recipe or "",
        changes=(*weights, *arguments.set),
    )
    train_own(own, run_dir, console, arguments.time_budget)


def queue(arguments: argparse.Namespace, console: "Console") -> None:
    """Train a list of runs."""
    from export.tasks.runs import read_queue, run_all

    run_all(read_queue(arguments.file), arguments.runs, console, arguments.time_budget)


def measure(arguments: argparse.Namespace, console: "Console") -> None:
    """Measure the weights of a finished run again."""
    require_finished(run_dir_of(arguments))
    from export.tasks.runs import measure_run

    measure_run(run_dir_of(arguments), console)


def report(arguments: argparse.Namespace, console: "Console") -> None:
    """Write the page of the models."""
    from export.studies.model_report import report as write_report

    write_report(arguments.runs, arguments.docs, arguments.model_store, console)


def convert(arguments: argparse.Namespace, console: "Console") -> None:
    """Convert a finished run."""
    run_dir = run_dir_of(arguments)
    require_finished(run_dir)
    from export.tasks.task import trained_task_of
    from export.training.run_folder import read_result

    task = trained_task_of(read_result(run_dir)["task"])
    task.convert(run_dir, target_of(arguments, arguments.model), console)


def explain_graph(arguments: argparse.Namespace, console: "Console") -> None:
    """Add the graph that explains to versions in the model store."""
    from export.conversion.explanation_graph import add_to_store
    from export.tasks.task import task_of

    for folder in arguments.folder:
        add_to_store(folder, task_of, console)


def float16(arguments: argparse.Namespace, console: "Console") -> None:
    """Add the float16 graphs to versions in the model store."""
    from export.conversion.float16 import add_to_store
    from export.tasks.task import task_of

    for folder in arguments.folder:
        add_to_store(folder, task_of, material_of, console)


def measure_batches(arguments: argparse.Namespace, console: "Console") -> None:
    """Measure how far answers of versions in the model store depend on the other items of their batch."""
    from export.conversion.sensitivity.batch_sensitivity import add_to_store
    from export.tasks.task import task_of

    for folder in arguments.folder:
        add_to_store(folder, task_of, material_of, console)


def material_of(manifest: Any) -> Any:
    """Load the labelled inputs, or sentences with references, that a model of the store is measured on.

    Raises:
        ValueError: the model names no known data set.
    """
    from export.tasks.task import task_of

    known = {manifest.provenance.get("data"), manifest.provenance.get("measured_on")}
    material = task_of(manifest.task).material(known)
    if material is None:
        raise ValueError(f"{manifest.name}: no data to measure it on: its manifest names no known data set")
    return material


def explain(arguments: argparse.Namespace, console: "Console") -> None:
    """Study explanations, and write the page about it."""
    from export.studies.interpretability import explain as study

    if arguments.page_only or study(
        arguments.model_store, arguments.docs, arguments.work, console, arguments.time_budget
    ):
        from export.studies.interpretability_page import write_page

        write_page(arguments.docs, console)


def archive(arguments: argparse.Namespace, console: "Console") -> None:
    """Pack models for TorchServe."""
    from export.torchserve.archive import Batching, newest_models
    from export.torchserve.archive import archive as pack

    found = newest_models(arguments.model_store)
    if unknown := [name for name in arguments.models if name not in found]:
        known = ", ".join(closest_first(unknown[0], found)) or "none"
        raise ValueError(f"no model with a task: {', '.join(unknown)}; {arguments.model_store} has {known}")
    batching = Batching(
        batch_size=arguments.batch_size,
        max_batch_delay_ms=arguments.max_batch_delay_ms,
        workers=arguments.workers,
        threads=arguments.threads,
    )
    for name in arguments.models or found:
        path = pack(found[name], arguments.into, batching, arguments.runtime)
        console.print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB", soft_wrap=True, highlight=False)


def load(arguments: argparse.Namespace, console: "Console") -> None:
    """Convert a Hugging Face model."""
    # PyTorch's threads sleep while they wait, instead of spinning: on a busy machine the comparison with PyTorch would
    # otherwise take many times its work. The variable is read when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from export.tasks.task import task_of

    if arguments.task is None:
        from export.conversion.checkpoints.architecture import task_of_checkpoint

        arguments.task = task_of_checkpoint(arguments.source)
        console.print(f"task: {arguments.task}")
    task = task_of(arguments.task)
    if arguments.validate_on:
        task.check_validation_set(arguments.validate_on)
    if arguments.precision != "float32" and not arguments.validate_on and task.needs_labels:
        raise ValueError(
            f"--precision {arguments.precision} needs labelled inputs to measure the loss: --validate-on, for"
            " classifiers"
        )
    from export.conversion.checkpoints.onnx_folder import split_graph

    folder, _ = split_graph(arguments.source)  # a graph is served under the name of its folder
    target = target_of(arguments, Path(folder).resolve().name)
    task.load(arguments.source, arguments.validate_on, target, console)


def random_weights(arguments: argparse.Namespace, console: "Console") -> None:
    """Write a model with random weights; the defaults have the size of MiniLM."""
    from export.studies.random_weights import write_random_weights
    from export.tasks.text_classification import TASK

    write_random_weights(
        TASK,
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


def target_of(arguments: argparse.Namespace, default_name: str) -> "Target":
    """Return the model that a conversion writes; its name is `--name`, or the default.

    Raises:
        ValueError: the name has characters that are not allowed.
    """
    from export.tasks.task import Target
    from model_store.folder import NAME

    name: str = arguments.name or default_name
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: a model's name may have letters, digits, '.', '_' and '-'")
    return Target(name, arguments.model_store, arguments.precision)


def run_dir_of(arguments: argparse.Namespace) -> Path:
    """Return the run folder: `--run-dir`, or the one in `runs/` with the name of the run.

    Raises:
        ValueError: the name has characters that are not allowed.
    """
    from model_store.folder import NAME

    run_dir: Path | None = arguments.run_dir
    if run_dir is not None:
        return run_dir
    given = vars(arguments)
    if arguments.command != "train":
        return Path("runs") / str(arguments.model)
    name: str = given["name"] or given["model"] or Path(given["data"] or given["recipe"] or "run").stem
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: a run's name may have letters, digits, '.', '_' and '-'")
    return Path("runs") / name


def leave(status: int) -> None:
    """End the process; after an early end at once, because threads of libraries that were cut off may abort it.

    pyarrow does so when a write has failed, and the exit status would be that of the abort.
    """
    if status in {FAILED, INTERRUPTED, TERMINATED}:
        with contextlib.suppress(OSError):  # a full disk
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    stop_on_signals()
    leave(main())
