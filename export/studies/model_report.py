"""`python -m export report`: writes docs/models.md from the records of the runs.

    runs/<name>/result.json ──> docs/runs/<name>.json (kept in the repository) ──> docs/models.md and its pictures

No figure of the page is typed by hand.
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from export.finished_runs import finished_runs
from export.markdown import pyplot_without_a_screen, table
from export.studies.sweeps import is_of_a_study, sweep_section, transfer_section
from export.tasks.run_tables import accuracy_of
from export.tasks.task import Records, trained_tasks
from export.whole_files import save_figure, write_bytes, write_text
from model_store.folder import EXPLAIN

HEAD = """# Models

The quality of the served models, and of all training runs by task. `python -m export report` writes this page from the
records in `docs/runs/` and from the manifests of the model store.
"""
RECORDS = """
## Records and training time

The record of each run in `docs/runs/` has its command, commit, seed, hardware and duration, and every figure of its
rows above. To repeat a run, use its command at its commit, because some recipes have changed since. No run used a GPU.
"""


def report(runs: Path, docs: Path, store: Path, console: Console) -> None:
    """Copy the records of finished runs, and rewrite the page.

    Args:
        runs: the folder of run folders, which may be missing.
        store: the model store with the served models, which may be missing.
        docs: the folder of `models.md` and `runs/`, and of `serving.json` when `python -m
            load_tests.bench.trained_runs` has run.
        console: shows progress.
    """
    kept = docs / "runs"
    kept.mkdir(parents=True, exist_ok=True)
    for result in sorted(runs.glob("*/result.json")):
        if json.loads(result.read_text()).get("data_document"):
            console.print(f"left out: {result}, a run on data of one's own")
            continue
        write_bytes(kept / f"{result.parent.name}.json", result.read_bytes())
        console.print(f"copied: {result}")
    if not finished_runs(runs):
        console.print(f"no finished run in {runs}: the page shows the records in {kept}")
    records = {path.stem: json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))}
    page = HEAD + served_section(store)
    for task in sorted(trained_tasks(), key=lambda task: task.report.place):
        chosen = {name: record for name, record in records.items() if record["task"] == task.name}
        alone = {name: record for name, record in chosen.items() if not is_of_a_study(name)}
        pictures = f"models-{task.report.subject}"
        if alone:
            page += task.report.write(alone)
            plot_learning_curves(alone, docs / f"{pictures}-curves.png", task.report.curve_measure)
            if task.report.has_confusion:
                plot_confusion(alone, docs / f"{pictures}-confusion.png")
        page += "".join(f"{line}\n" for line in studies(chosen, docs, pictures))
    write_text(docs / "models.md", page + RECORDS + budget(records))
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
        "\nThe budget for all runs together is ten hours on two cores, which is 20 thread hours. Time used by the"
        f" {len(records)} runs on this page, without validation: {taken or 'none'}.\n"
    )


def studies(records: Records, docs: Path, pictures: str) -> list[str]:
    """Write the sections that compare many runs of one task; `pictures` begins the names of their pictures."""
    served = docs / "serving.json"
    serving = json.loads(served.read_text()) if served.exists() else None
    return [
        *transfer_section(records, docs / f"{pictures}-transfer.png"),
        *sweep_section(records, serving, docs / f"{pictures}-sweep.png"),
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
        "## Served models",
        "",
        "Each model folder of the store was measured with its own graphs, tokenizer and preprocessing. The model card"
        " in the folder has further details. Standard errors are in brackets.",
        *table(("model", "precision", "size of graphs", "measured on", "result"), rows),
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
    save_figure(figure, path, dpi=110)
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
    save_figure(figure, path, dpi=110)
    pyplot.close(figure)
