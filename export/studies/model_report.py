"""`python -m export report`: writes docs/models.md from the records of the runs.

    runs/<name>/result.json ──> docs/runs/<name>.json (kept in the repository) ──> docs/models.md and its pictures

No figure of the page is typed by hand.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from export.markdown import pyplot_without_a_screen, table
from export.studies.sweeps import is_of_a_study, sweep_section, transfer_section
from export.training.quality import with_confidence
from model_store.folder import EXPLAIN

HEAD = """# Models

Made by `python -m export report` from the records in `docs/runs/`: each has the command, commit, seed, hardware and
duration of its run, and every figure below. A command belongs to its commit: recipes have changed since some of them
ran. None of these runs had a GPU.
"""


def report(runs: Path, docs: Path, store: Path, console: Console) -> None:
    """Copy the records of finished runs, and rewrite the page.

    Args:
        runs: the folder of run folders, which may be missing.
        store: the model store with the served models, which may be missing.
        docs: the folder of `models.md` and `runs/`, and of `serving.json` when `python -m
            load_tests.bench.trained_runs` has run.
        console: shows what was done.
    """
    kept = docs / "runs"
    kept.mkdir(parents=True, exist_ok=True)
    for result in sorted(runs.glob("*/result.json")):
        shutil.copyfile(result, kept / f"{result.parent.name}.json")
        console.print(f"taken over: {result}")
    records = {path.stem: json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))}
    page = HEAD + budget(records)
    for task, subject, section in (
        ("text-classification", "sentiment", text_classification_section),
        ("translation", "translation", translation_section),
        ("image-classification", "cifar10", image_classification_section),
    ):
        chosen = {name: record for name, record in records.items() if record["task"] == task}
        alone = {name: record for name, record in chosen.items() if not is_of_a_study(name)}
        if alone:
            page += section(alone)
            measure = "tokens predicted" if task == "translation" else "accuracy"
            plot_learning_curves(alone, docs / f"models-{subject}-curves.png", measure)
            if task != "translation":
                plot_confusion(alone, docs / f"models-{subject}-confusion.png")
        if task == "text-classification" and chosen:
            page += "".join(f"{line}\n" for line in studies(chosen, docs))
    (docs / "models.md").write_text(page + served_section(store))
    console.print(f"written: {docs / 'models.md'} ({len(records)} runs)")


def budget(records: dict[str, dict[str, Any]]) -> str:
    """Sum the training time of all runs by device."""
    hours: dict[str, float] = {}
    for record in records.values():
        for hardware, seconds in record.get("hardware_s", {record["hardware"]: record["training_s"]}).items():
            threads, _, processor = hardware.rpartition(" threads of ")
            device = f"thread hours on {processor}" if threads else f"hours on {processor}"
            hours[device] = hours.get(device, 0.0) + int(threads or 1) * seconds / 3600
    taken = " and ".join(f"{value:.1f} {device}" for device, value in sorted(hours.items()))
    return (
        "\nThe budget of all runs together is ten hours of two cores, 20 thread hours; the"
        f" {len(records)} on this page took {taken or 'nothing'}, validation not counted.\n"
    )


def studies(records: dict[str, dict[str, Any]], docs: Path) -> list[str]:
    """Write the sections that compare many runs of text classification."""
    served = docs / "serving.json"
    serving = json.loads(served.read_text()) if served.exists() else None
    return [
        *transfer_section(records, docs / "models-sentiment-transfer.png"),
        *sweep_section(records, serving, docs / "models-sentiment-sweep.png"),
    ]


# The last columns of every run's row.
HOW = ("minutes", "best epoch", "seed", "hardware", "commit")


def how(record: dict[str, Any]) -> list[str]:
    """Return a run's cells under the columns `HOW`."""
    return [
        f"{record['training_s'] / 60:.1f}",
        str(record["best_epoch"]),
        str(record["config"]["seed"]),
        f"{record['hardware']}{', bf16' if record['bf16'] else ''}",
        f"`{record['commit']}`",
    ]


def served_section(store: Path) -> str:
    """Write the section on the served model folders; empty without any."""
    rows = []
    for path in sorted(store.glob("*/*/manifest.json")):
        manifest = json.loads(path.read_text())
        size = sum(file.stat().st_size for file in path.parent.glob("*.onnx") if file.name != EXPLAIN) / 1e6
        about = [f"{manifest['name']}, version {path.parent.name}", manifest["precision"], f"{size:.1f} MB"]
        for examples, measured in manifest["quality"].items():
            if examples == "compared_with_pytorch" or not isinstance(measured, dict):
                continue
            if "accuracy" in measured:
                what = f"{examples} (n = {measured['num_examples']:,})"
                rows.append([*about, what, f"accuracy {accuracy_of(measured)} %"])
                continue
            for search, judged in measured.items():
                what = f"{examples}, {search} (n = {judged['num_examples']:,})"
                rows.append([*about, what, f"BLEU {judged['bleu']:.2f}, chrF {judged['chrf']:.2f}"])
    if not rows:
        return ""
    lines = [
        "",
        "## Served",
        "",
        "The folders of the model store, measured with their own graphs, tokenizers and preprocessing; their cards"
        " have the rest. Standard errors in brackets.",
        *table(("model", "precision", "graphs", "measured on", "what"), rows),
    ]
    return "\n".join(lines) + "\n"


def best_first(records: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Sort classification runs by accuracy, best first."""
    return sorted(records.items(), key=lambda entry: -entry[1]["quality"]["accuracy"])


def accuracy(record: dict[str, Any]) -> str:
    """Format a run's accuracy with its standard error, in percent."""
    return accuracy_of(record["quality"])


def accuracy_of(quality: dict[str, Any]) -> str:
    """Format a measured accuracy with its standard error, in percent."""
    return f"{100 * quality['accuracy']:.2f} ({100 * quality['accuracy_standard_error']:.2f})"


def text_classification_section(records: dict[str, dict[str, Any]]) -> str:
    """Write the section on the classifiers of SST-2, best first."""
    columns = ("run", "network", "weights from", "teacher", "training examples", "parameters")
    columns += ("accuracy % (standard error)", "F1", "calibration error", *HOW)
    rows = [
        [
            f"[{name}](runs/{name}.json)",
            record["network"],
            record["config"]["start_from"],
            record["config"]["teacher"] or "none",
            f"{record['num_training_examples']:,}",
            f"{record['num_parameters'] / 1e6:.2f} M",
            accuracy(record),
            f"{record['quality']['f1_macro']:.4f}",
            f"{record['quality']['expected_calibration_error']:.4f}",
            *how(record),
        ]
        for name, record in best_first(records)
    ]
    lines = [
        "",
        "## Sentiment (SST-2)",
        "",
        "Trained on phrases and sentences of the GLUE training split; accuracy on its validation sentences, which"
        " also chose the epoch, and the seed of sentiment-minilm: an optimistic figure. Weights rounded to half"
        " precision, as they are served.",
        *table(columns, rows),
        "",
        "![validation accuracy by minutes of training](models-sentiment-curves.png)",
        "",
        "![confusion matrices](models-sentiment-confusion.png)",
    ]
    return "\n".join(lines) + "\n"


def translation_section(records: dict[str, dict[str, Any]]) -> str:
    """Write the section on the English to German translation models, by test split."""
    runs = [
        [
            f"[{name}](runs/{name}.json)",
            record["network"],
            record["data"],
            f"{record['num_training_examples']:,}",
            f"{record['num_parameters'] / 1e6:.2f} M",
            *how(record),
        ]
        for name, record in records.items()
    ]
    signatures, measurements = {}, []
    for name, record in records.items():
        for split, searches in record["quality"].items():
            for search, measured in searches.items():
                figures = [with_confidence(measured, kind) for kind in ("bleu", "chrf", "bleu_lower_tokenised")]
                measurements.append([name, f"{split} (n = {measured['num_examples']:,})", search, *figures])
                signatures |= {key: value for key, value in measured.items() if key.endswith("_signature")}
    lines = [
        "",
        "## Translation (English to German)",
        "",
        "The epoch was chosen by the share of validation tokens that are predicted when all before them are given."
        " BLEU and chrF are of the served text, cased and detokenised; the last BLEU is of text in lower case,"
        " tokenised by Moses, as papers on Multi30k report it (Wu et al. 2021: 41.02 with beams of 5). The two must not"
        " be compared. Behind each the half width of its 95 % interval (bootstrap). Weights rounded to half precision,"
        " as they are served.",
        *table(("run", "network", "trained on", "pairs", "parameters", *HOW), runs),
        *table(("run", "test split", "search", "BLEU", "chrF", "BLEU, lower case, tokenised"), measurements),
        "",
        *(f"- {key.replace('_', ' ')}: `{value}`" for key, value in signatures.items()),
        "",
        "![share of validation tokens by minutes of training](models-translation-curves.png)",
    ]
    return "\n".join(lines) + "\n"


def image_classification_section(records: dict[str, dict[str, Any]]) -> str:
    """Write the section on the classifiers of CIFAR-10, best first."""
    columns = ("run", "network", "teacher", "parameters", "products of one image", "accuracy % (standard error)")
    columns += ("JPEG", "moved", "calibration error", *HOW)
    rows = [
        [
            f"[{name}](runs/{name}.json)",
            record["network"],
            record["config"]["teacher"] or "none",
            f"{record['num_parameters'] / 1e6:.2f} M",
            f"{record['multiply_accumulates'] / 1e6:.0f} M",
            accuracy(record),
            f"{100 * record['quality_jpeg']['accuracy']:.2f}",
            f"{100 * record['quality_moved']['accuracy']:.2f}",
            f"{record['quality']['expected_calibration_error']:.4f}",
            *how(record),
        ]
        for name, record in best_first(records)
    ]
    classes = []
    for name, record in records.items():
        matrix = record["quality"]["confusion_matrix"]
        for number, label in enumerate(record["labels"]):
            right, predicted = matrix[number][number], sum(row[number] for row in matrix)
            precision, recall = right / max(1, predicted), right / max(1, sum(matrix[number]))
            classes.append([name, label, f"{100 * precision:.1f}", f"{100 * recall:.1f}"])
    of_any = next(iter(records.values()))
    lines = [
        "",
        "## Images (CIFAR-10)",
        "",
        "Images kept back from the training split chose the epoch; accuracy on the test split, and on the same images"
        f" after JPEG compression (quality {of_any['quality_jpeg']['jpeg_quality']}) and moved by"
        f" {of_any['quality_moved']['shift_pixels']} pixels both ways. Weights rounded to half precision, as they are"
        " served.",
        *table(columns, rows),
        *table(("run", "class", "precision %", "recall %"), classes),
        "",
        "![validation accuracy by minutes of training](models-cifar10-curves.png)",
        "",
        "![confusion matrices](models-cifar10-confusion.png)",
    ]
    return "\n".join(lines) + "\n"


def plot_learning_curves(records: dict[str, dict[str, Any]], path: Path, measure: str) -> None:
    """Plot the validation measure over training time, one line per run."""
    pyplot = pyplot_without_a_screen()
    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    # Distinct lines: ten colours, and another dash pattern for every ten runs.
    colors = pyplot.cycler(color=pyplot.colormaps["tab10"].colors)
    axes.set_prop_cycle(pyplot.cycler(linestyle=["-", "--"]) * colors)
    for name, record in records.items():
        scores = [entry["score"] for entry in record["history"]]
        minutes = [record["training_s"] / 60 * (epoch + 1) / len(scores) for epoch in range(len(scores))]
        axes.plot(minutes, scores, marker="o", markersize=3, label=name)
    axes.set(xlabel="minutes of training", ylabel=f"validation: {measure}", xscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_confusion(records: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot a confusion matrix per run; rows are true classes, normalised to fractions."""
    pyplot = pyplot_without_a_screen()
    columns = min(4, len(records))
    rows = -(-len(records) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(2.6 * columns, 2.8 * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(records) :]:
        axes.set_visible(False)
    for axes, (name, record) in zip(grid.flat, records.items(), strict=False):
        matrix, labels = record["quality"]["confusion_matrix"], record["labels"]
        axes.imshow([[cell / sum(row) for cell in row] for row in matrix], cmap="Blues", vmin=0, vmax=1)
        for row, cells in enumerate(matrix):
            for column, cell in enumerate(cells):
                color = "white" if cell > sum(cells) / 2 else "black"
                size = 10 if len(labels) < 5 else 4
                axes.text(column, row, str(cell), ha="center", va="center", color=color, fontsize=size)
        small = {"fontsize": 8 if len(labels) < 5 else 5}
        axes.set_xticks(range(len(labels)), [label.lower() for label in labels], rotation=90, **small)
        axes.set_yticks(range(len(labels)), [label.lower() for label in labels], **small)
        axes.set_title(name, fontsize=9)
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("true", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
