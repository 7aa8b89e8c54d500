"""Writes the sections of docs/models.md that compare many runs: transfer, and the sweep over shapes.

The prefix of a run's name, `transfer-` or `sweep-`, assigns it to a study; see export/queue.toml.
"""

import itertools
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from export.markdown import pyplot_without_a_screen, table
from export.whole_files import save_figure

Records = dict[str, dict[str, Any]]
# Starting points of transfer: a description, and the run on all training data.
TRANSFER = {
    "minilm": ("MiniLM, pre-trained", "sentiment-minilm-plain"),
    "minilm-shape": ("the same network from random weights", "sentiment-minilm-shape"),
    "scratch": ("the small transformer from random weights", "sentiment"),
}


def is_of_a_study(name: str) -> bool:
    """Tell whether a run belongs to a study of many runs, and is not shown by itself."""
    return name.startswith(("transfer-", "sweep-"))


def accuracy_percent(record: dict[str, Any]) -> float:
    """Return the accuracy on the validation split, in percent."""
    return 100 * float(record["quality"]["accuracy"])


def mean_and_spread(values: list[float]) -> str:
    """Format the mean, the range and the number of values."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f}, n = {len(values)})"


# --- transfer --------------------------------------------------------------------------------------------------------


def transfer_section(records: Records, picture: Path) -> list[str]:
    """Write accuracy by starting point and fraction of the training data; empty without such runs."""
    if not any(name.startswith("transfer-") for name in records):
        return []
    accuracies: dict[str, dict[int, list[float]]] = {start: {} for start in TRANSFER}
    for name, record in records.items():
        start = record["config"]["start_from"]
        if start in TRANSFER and (name.startswith("transfer-") or name == TRANSFER[start][1]):
            accuracies[start].setdefault(record["num_training_examples"], []).append(accuracy_percent(record))
    accuracies = {start: by_size for start, by_size in accuracies.items() if by_size}
    sizes = sorted({size for by_size in accuracies.values() for size in by_size})
    rows = [
        [TRANSFER[start][0], *(mean_and_spread(by_size[size]) if size in by_size else "" for size in sizes)]
        for start, by_size in accuracies.items()
    ]
    lines = [
        "",
        "### Transfer",
        "",
        "Accuracy in percent on the validation sentences, by the weights at the start of training and by the number of"
        " training examples. A cell has the mean over the seeds, with the lowest and the highest value in brackets."
        " Each seed also draws a different subset of the training examples.",
        *table(["start", *(f"{size:,}" for size in sizes)], rows),
    ]
    _plot_transfer(accuracies, picture)
    return [*lines, "", f"![accuracy by number of training examples]({picture.name})"]


def _plot_transfer(accuracies: dict[str, dict[int, list[float]]], picture: Path) -> None:
    pyplot = pyplot_without_a_screen()
    figure, axes = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    for start, by_size in accuracies.items():
        points = sorted(by_size.items())
        means = [statistics.mean(values) for _, values in points]
        below = [mean - min(values) for mean, (_, values) in zip(means, points, strict=True)]
        above = [max(values) - mean for mean, (_, values) in zip(means, points, strict=True)]
        sizes = [size for size, _ in points]
        axes.errorbar(sizes, means, yerr=[below, above], marker="o", capsize=3, label=TRANSFER[start][0])
    axes.set(xlabel="training examples", ylabel="validation accuracy, %", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, picture, dpi=110)
    pyplot.close(figure)


# --- sweep -----------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A shape of the sweep; its fields are those of `EncoderConfig`."""

    num_layers: int
    num_heads: int
    d_model: int

    def __str__(self) -> str:
        return f"{self.num_layers} x {self.d_model}, {self.num_heads} heads"


class Swept(NamedTuple):
    """The results of the runs of one setting."""

    num_parameters: int
    accuracies: list[float]  # percent, one per seed
    train_accuracies: list[float]  # percent, of the last training epoch
    minutes: list[float]
    p50_ms: float | None  # served, at one user; None: not measured
    requests_per_s: float | None  # served, at most users


def sweep_section(records: Records, serving: dict[str, Any] | None, picture: Path) -> list[str]:
    """Write the settings by accuracy, each dimension's effect, and the picture; empty without such runs.

    Args:
        records: all runs of the task.
        serving: the figures of `python -m load_tests.bench.trained_runs`, or None.
        picture: the file of the picture.
    """
    settings = swept_settings(records, serving["models"] if serving else {})
    if not settings:
        return []
    best_first = sorted(settings.items(), key=lambda entry: -statistics.mean(entry[1].accuracies))
    front = pareto_front(settings)
    lines = [
        "",
        "### Sweep over layers, heads and width",
        "",
        "The runs use the recipe `sentiment` with other numbers of layers and heads and other widths; the inner width"
        " is twice the width, and the number of epochs is the same for all. The accuracy in percent on the validation"
        " sentences is the mean over the seeds, with the lowest and the highest value in brackets. The number of"
        " validation sentences alone gives an accuracy a standard error of about"
        f" {100 * next(iter(records.values()))['quality']['accuracy_standard_error']:.1f} points. The training accuracy"
        " is that of the last epoch, on phrases, with dropout. A setting is on the Pareto front if no other setting is"
        " both faster and more accurate.",
    ]
    if serving:
        lines += ["", _how_served(serving)]
    users = f"{serving['users']} users" if serving else "many users"
    columns = (
        "layers x width, heads",
        "parameters",
        "accuracy %",
        "training accuracy %",
        "minutes of training",
        "p50 ms at 1 user",
        f"requests/s at {users}",
        "on the Pareto front",
    )
    rows = [
        [
            str(setting),
            f"{swept.num_parameters / 1e6:.2f} M",
            mean_and_spread(swept.accuracies),
            f"{statistics.mean(swept.train_accuracies):.1f}",
            f"{statistics.mean(swept.minutes):.1f}",
            "" if swept.p50_ms is None else f"{swept.p50_ms:.2f}",
            "" if swept.requests_per_s is None else f"{swept.requests_per_s:.0f}",
            "yes" if setting in front else "",
        ]
        for setting, swept in best_first
    ]
    lines += table(columns, rows)
    lines += ["", *_effects(settings)]
    _plot_sweep(settings, front, picture)
    lines += ["", f"![accuracy by latency and by parameters]({picture.name})"]
    return [*lines, "", "[what-mattered.md](what-mattered.md) interprets these tables."]


def _how_served(serving: dict[str, Any]) -> str:
    """Write how latency and throughput were measured."""
    return (
        "Latency and throughput were measured on the running server over gRPC, with one sentence per request, by the"
        f" command in [serving.json](serving.json) at commit {serving['commit']}, {serving['machine']}. They are"
        f" medians of {serving['rounds']} rounds. Steal time (CPU time that the host took from the machine) was"
        f" {serving['steal_s']:.1f} CPU s in {serving['wall_s']:.0f} s."
    )


def swept_settings(records: Records, served: dict[str, dict[str, float]]) -> dict[Setting, Swept]:
    """Group the runs of the sweep by their shape."""
    grouped: dict[Setting, Records] = {}
    for name, record in records.items():
        if name.startswith("sweep-"):
            shape = record["config"]["model"]
            setting = Setting(*(shape[field] for field in Setting._fields))
            grouped.setdefault(setting, {})[name] = record
    settings = {}
    for setting, runs in grouped.items():
        measured = [served[name] for name in runs if name in served]
        settings[setting] = Swept(
            num_parameters=next(iter(runs.values()))["num_parameters"],
            accuracies=[accuracy_percent(record) for record in runs.values()],
            train_accuracies=[100 * record["history"][-1]["train_accuracy"] for record in runs.values()],
            minutes=[record["training_s"] / 60 for record in runs.values()],
            p50_ms=statistics.median(one["p50_ms"] for one in measured) if measured else None,
            requests_per_s=statistics.median(one["requests_per_s"] for one in measured) if measured else None,
        )
    return settings


def pareto_front(settings: dict[Setting, Swept]) -> set[Setting]:
    """Return the Pareto front of accuracy and cost (latency, or parameters where latency is missing)."""

    def beats(one: Swept, other: Swept) -> bool:
        gain = statistics.mean(one.accuracies) - statistics.mean(other.accuracies)
        saved = _cost(other) - _cost(one)
        return gain >= 0 and saved >= 0 and (gain > 0 or saved > 0)

    return {
        setting for setting, swept in settings.items() if not any(beats(other, swept) for other in settings.values())
    }


def _cost(swept: Swept) -> float:
    return float(swept.num_parameters) if swept.p50_ms is None else swept.p50_ms


def _effects(settings: dict[Setting, Swept]) -> Iterable[str]:
    """Compute the effect of a step in one dimension, all else equal, beside the effect of another seed."""
    yield (
        "The next table shows the effect of one dimension. Each row compares the pairs of settings that differ only in"
        " this dimension: the mean change of accuracy in points (lowest to highest change), and the median ratio of the"
        " p50 latencies."
    )
    rows = []
    for field in Setting._fields:
        for low, high in itertools.pairwise(sorted({getattr(setting, field) for setting in settings})):
            pairs = [
                (settings[one], settings[one._replace(**{field: high})])
                for one in settings
                if getattr(one, field) == low and one._replace(**{field: high}) in settings
            ]
            if not pairs:
                continue
            gains = [statistics.mean(more.accuracies) - statistics.mean(less.accuracies) for less, more in pairs]
            ratios = [more.p50_ms / less.p50_ms for less, more in pairs if less.p50_ms and more.p50_ms]
            times = f"{statistics.median(ratios):.2f}" if ratios else ""
            gain = f"{_signed(statistics.mean(gains))} ({_signed(min(gains))} to {_signed(max(gains))})"
            rows.append([field, str(low), str(high), str(len(pairs)), gain, times])
    yield from table(("dimension", "from", "to", "pairs", "accuracy", "latency ratio"), rows)
    repeated = {setting: swept for setting, swept in settings.items() if len(swept.accuracies) > 1}
    if repeated:
        between = [max(swept.accuracies) - min(swept.accuracies) for swept in repeated.values()]
        yield ""
        yield (
            f"Two seeds of the same setting differ by {statistics.mean(between):.2f} points on average and by"
            f" {max(between):.2f} points at most. Smaller differences between settings may be due to the seed alone."
        )
    narrowest = min((setting.d_model for setting in repeated), default=0)
    for which, chosen in (
        ("all settings", repeated),
        (
            f"the settings wider than {narrowest}",
            {one: swept for one, swept in repeated.items() if one.d_model > narrowest},
        ),
    ):
        if len(chosen) > 1:
            yield ""
            yield _spread_of_means(which, list(chosen.values()))


def _spread_of_means(which: str, settings: list[Swept]) -> str:
    """Compare the spread of the settings' means with the spread that seeds alone would cause."""
    means = [statistics.mean(swept.accuracies) for swept in settings]
    by_seeds = statistics.mean(statistics.variance(swept.accuracies) / len(swept.accuracies) for swept in settings)
    return (
        f"The mean accuracies of {which} (n = {len(means)}) have a standard deviation of"
        f" {statistics.stdev(means):.2f} points; differences between seeds alone would give {by_seeds**0.5:.2f} points."
    )


def _signed(points: float) -> str:
    """Format a number with its sign; values that round to zero give +0.00."""
    return f"{round(points, 2) + 0.0:+.2f}"


def _plot_sweep(settings: dict[Setting, Swept], front: set[Setting], picture: Path) -> None:
    pyplot = pyplot_without_a_screen()
    figure, axes = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
    widths = sorted({setting.d_model for setting in settings})
    for number, width in enumerate(widths):
        chosen = {setting: swept for setting, swept in settings.items() if setting.d_model == width}
        costs = [_cost(swept) for swept in chosen.values()]
        means = [statistics.mean(swept.accuracies) for swept in chosen.values()]
        below = [mean - min(swept.accuracies) for mean, swept in zip(means, chosen.values(), strict=True)]
        above = [max(swept.accuracies) - mean for mean, swept in zip(means, chosen.values(), strict=True)]
        axes.errorbar(costs, means, yerr=[below, above], fmt="o", color=f"C{number}", label=f"width {width}", alpha=0.8)
        for setting, cost, mean in zip(chosen, costs, means, strict=True):
            axes.annotate(
                f"{setting.num_layers}L {setting.num_heads}H", (cost, mean), (4, 3), textcoords="offset points", size=7
            )
    corner = sorted((_cost(settings[setting]), statistics.mean(settings[setting].accuracies)) for setting in front)
    axes.step(*zip(*corner, strict=True), where="post", color="grey", linestyle="--", label="Pareto front")
    by_latency = all(swept.p50_ms is not None for swept in settings.values())
    axes.set(xlabel="latency of the server, p50 ms at 1 user" if by_latency else "parameters")
    axes.set(xscale="linear" if by_latency else "log", ylabel="validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    save_figure(figure, picture, dpi=110)
    pyplot.close(figure)
