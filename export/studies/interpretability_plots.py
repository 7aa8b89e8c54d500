"""Draws the pictures of docs/interpretability.md from the record of the study of explanations.

Shapes: M features, L layers, H heads, T tokens, K target pieces, N methods.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.markdown import pyplot_without_a_screen
from export.studies.attention_patterns import IMAGE_KINDS, SOURCE_KINDS, TEXT_KINDS
from export.studies.demo_images import demo_images
from export.whole_files import save_figure
from service.explanation.methods.overlay import AGAINST_RGB, FOR_RGB

Record = dict[str, Any]
NAMES = {
    "attention": "attention rollout",
    "gradients": "integrated gradients",
    "occlusion": "occlusion",
    "lime": "LIME",
    "shap": "KernelSHAP",
    "random": "random order",
}
TITLES = {
    "sentiment": "sentiment (words)",
    "translation-en-de": "translation-en-de (words)",
    "cifar10-vit": "cifar10-vit (patches)",
}
COLOURS = {
    "attention": "#8c6bb1",
    "gradients": "#1b9e77",
    "occlusion": "#d95f02",
    "lime": "#7570b3",
    "shap": "#e7298a",
    "random": "#888888",
}
KIND_NAMES = {
    "first": "[CLS]",
    "last": "[SEP] or end of sentence",
    "mark": "punctuation",
    "itself": "itself",
    "before": "previous token",
    "after": "next token",
    "around": "the 8 neighbouring patches",
    "other": "all others",
}
KIND_COLOURS = {
    "first": "#b2182b",
    "last": "#ef8a62",
    "mark": "#fddbc7",
    "itself": "#2166ac",
    "before": "#67a9cf",
    "after": "#92c5de",
    "around": "#92c5de",
    "other": "#d9d9d9",
}
DPI = 110


def kinds_of(name: str) -> Sequence[str]:
    """Return the kinds of tokens that a model's self-attention figures distinguish."""
    return IMAGE_KINDS if name == "cifar10-vit" else TEXT_KINDS


def plot_kinds(models: Record, path: Path) -> None:
    """Plot the kinds of tokens that each layer attends to, one bar per layer, beside uniform attention."""
    pyplot = pyplot_without_a_screen()
    figure, grid = pyplot.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
    shown: dict[str, Any] = {}
    for axes, (name, model) in zip(grid, models.items(), strict=True):
        bars, rows = [], []
        for where, kinds in (("self", kinds_of(name)), ("cross", SOURCE_KINDS)):
            if where not in model["patterns"]:
                continue
            found = model["patterns"][where]
            layers = np.mean(found["shares"], axis=1)
            prefix = {"self": "encoder " if "cross" in model["patterns"] else "layer ", "cross": "to source "}[where]
            rows += [
                (f"{prefix}{layer + 1}", dict(zip(kinds, fractions, strict=True)))
                for layer, fractions in enumerate(layers)
            ]
            rows.append(("uniform", dict(zip(kinds, found["even_shares"], strict=True))))
        for place, (label, fractions) in enumerate(rows):
            left, faint = 0.0, 0.45 if label == "uniform" else 1.0
            for kind, kind_name in KIND_NAMES.items():
                fraction = fractions.get(kind, 0.0)
                if not fraction:
                    continue
                bar = axes.barh(place, fraction, left=left, color=KIND_COLOURS[kind], edgecolor="white", alpha=faint)
                shown.setdefault(kind_name, bar)
                if fraction >= 0.07:
                    axes.text(left + fraction / 2, place, f"{100 * fraction:.0f}", ha="center", va="center", size=7)
                left += fraction
            bars.append(label)
        axes.set_yticks(range(len(bars)), bars, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xticks=[], title=name)
    order = [name for name in KIND_NAMES.values() if name in shown]
    figure.legend([shown[name] for name in order], order, loc="outside lower center", ncols=8, fontsize=8)
    figure.suptitle("Attention weight by kind of attended token, in %, mean of heads and examples", fontsize=10)
    save_figure(figure, path, dpi=DPI)
    pyplot.close(figure)


def plot_distances(models: Record, path: Path) -> None:
    """Plot each head's mean attention distance by layer (Dosovitskiy et al. 2021, fig. 7), and its mean entropy."""
    pyplot = pyplot_without_a_screen()
    figure, grid = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for axes, (name, model) in zip(grid, models.items(), strict=True):
        found = model["patterns"]["self"]
        distance_LH, entropy_LH = np.array(found["distance"]), np.array(found["entropy"])
        layers = np.arange(1, len(distance_LH) + 1)
        dots = axes.scatter(
            np.repeat(layers, distance_LH.shape[1]),
            distance_LH.ravel(),
            c=entropy_LH.ravel(),
            cmap="viridis",
            vmin=0,
            vmax=1,
            s=34,
            edgecolor="white",
            linewidth=0.5,
            zorder=3,
        )
        axes.plot(layers, distance_LH.mean(axis=1), color="#444444", linewidth=1, label="mean of heads")
        axes.axhline(found["even_distance"], color="#b2182b", linestyle="--", linewidth=1, label="uniform attention")
        highest = max(distance_LH.max(), found["even_distance"])
        axes.set(title=name, xlabel="layer", xticks=layers, ylim=(0, 1.08 * highest))
        axes.set_ylabel("pixels" if name == "cifar10-vit" else "tokens")
        axes.grid(alpha=0.3)
    grid[0].legend(fontsize=8, loc="lower right")
    bar = figure.colorbar(dots, ax=list(grid), label="entropy (1: uniform)")
    bar.ax.tick_params(labelsize=8)
    figure.suptitle("Mean attention distance, one dot per head, mean of examples", fontsize=10)
    save_figure(figure, path, dpi=DPI)
    pyplot.close(figure)


def best_head(model: Record) -> tuple[int, int]:
    """Return layer and head, from 0, whose cross-attention agrees most with occlusion."""
    aligned_LH = np.array(model["patterns"]["cross"]["aligned"])
    layer, head = np.unravel_index(aligned_LH.argmax(), aligned_LH.shape)
    return int(layer), int(head)


def plot_alignment(model: Record, path: Path) -> None:
    """Plot each head's alignment with occlusion, and one sentence by attention and by occlusion."""
    pyplot = pyplot_without_a_screen()
    figure, grid = pyplot.subplots(1, 3, figsize=(13, 4.4), layout="constrained", width_ratios=[1.1, 1, 1])
    aligned_LH = np.array(model["patterns"]["cross"]["aligned"])
    layer, head = best_head(model)
    H = aligned_LH.shape[1]
    for number, row in enumerate(aligned_LH):
        order = np.arange(H) + number * (H + 1)
        grid[0].bar(
            order, 100 * row, color=["#1b9e77" if (number, h) == (layer, head) else "#a6bddb" for h in range(H)]
        )
        grid[0].text(order.mean(), -13, f"layer {number + 1}", ha="center", fontsize=9)
    cross = model["patterns"]["cross"]
    for key, label, colour in (
        ("aligned_mean_of_heads", "mean of all heads", "#8c6bb1"),
        ("aligned_same_place", "word at the same position", "#d95f02"),
        ("aligned_by_chance", "random word", "#888888"),
    ):
        grid[0].axhline(100 * cross[key], color=colour, linestyle="--", linewidth=1.2, label=label)
    ticks = [number * (H + 1) + h for number in range(len(aligned_LH)) for h in range(H)]
    grid[0].set_xticks(ticks, [str(h + 1) for _ in aligned_LH for h in range(H)], fontsize=7)
    grid[0].set(ylim=(0, 100), ylabel="% of target tokens")
    grid[0].set_title("tokens aligned with occlusion, by head", fontsize=10)
    grid[0].legend(fontsize=8, loc="upper right")
    example = model["shown"][0]
    K = len(example["pieces"]) - 1
    attention_KM = np.array(example["attention_to_words"]).mean(axis=(0, 1))[:K]
    influence_KM = np.array(example["influence"]).T[:K]
    influence_KM = np.maximum(influence_KM, 0)
    for axes, matrix_KM, title in (
        (grid[1], attention_KM, "attention, mean of all heads; rows scaled to maximum 1"),
        (grid[2], influence_KM, "occlusion; rows scaled to maximum 1"),
    ):
        shown_KM = matrix_KM / matrix_KM.max(axis=1, keepdims=True)
        axes.imshow(shown_KM, cmap="Greens", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(example["names"])), example["names"], rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(K), [piece.strip() for piece in example["pieces"][:K]], fontsize=8)
        axes.set_title(title, fontsize=10)
    save_figure(figure, path, dpi=DPI)
    pyplot.close(figure)


def plot_agreement(record: Record, path: Path) -> None:
    """Plot the mean rank correlation of every pair of methods, with its deviation over examples."""
    pyplot = pyplot_without_a_screen()
    methods, models = record["methods"], record["models"]
    figure, grid = pyplot.subplots(1, 3, figsize=(12.5, 4.1), layout="constrained")
    labels = [NAMES[method] for method in methods]
    for axes, (name, model) in zip(grid, models.items(), strict=True):
        mean_NN, deviation_NN = np.array(model["rank_correlation"]), np.array(model["rank_correlation_deviation"])
        drawn = axes.imshow(mean_NN, cmap="RdBu", vmin=-1, vmax=1)
        for row in range(len(methods)):
            for column in range(len(methods)):
                if row == column:
                    axes.text(column, row, "1", ha="center", va="center", fontsize=9, color="white")
                    continue
                cell = f"{mean_NN[row, column]:.2f}\n± {deviation_NN[row, column]:.2f}"
                ink = "white" if abs(mean_NN[row, column]) > 0.6 else "black"
                axes.text(column, row, cell, ha="center", va="center", fontsize=8, color=ink)
        axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=8)
        axes.set_yticks(range(len(labels)), labels if axes is grid[0] else [""] * len(labels), fontsize=8)
        axes.set_title(f"{TITLES[name]}, n = {model['num_examples']}", fontsize=10)
    figure.colorbar(drawn, ax=list(grid), label="rank correlation")
    figure.suptitle(
        "Agreement of two methods: rank correlation of weights, mean ± standard deviation over examples", fontsize=10
    )
    save_figure(figure, path, dpi=DPI)
    pyplot.close(figure)


def plot_areas(models: Record, path: Path) -> None:
    """Plot each method's deletion and insertion areas with 95 % intervals, beside a random order."""
    pyplot = pyplot_without_a_screen()
    figure, grid = pyplot.subplots(2, 3, figsize=(12, 4.8), layout="constrained")
    for column, (name, model) in enumerate(models.items()):
        for row, (kind, better) in enumerate((("deletion", "lower is better"), ("insertion", "higher is better"))):
            axes = grid[row, column]
            areas = {method: area[kind] for method, area in model["areas"].items()}
            for place, (method, area) in enumerate(areas.items()):
                axes.errorbar(
                    area["mean"],
                    place,
                    xerr=area["half_width"],
                    fmt="o",
                    color=COLOURS[method],
                    capsize=3,
                    markersize=6,
                )
            axes.axvline(areas["random"]["mean"], color=COLOURS["random"], linestyle="--", linewidth=1)
            axes.set_yticks(
                range(len(areas)), [NAMES[each] for each in areas] if column == 0 else [""] * len(areas), fontsize=8
            )
            axes.invert_yaxis()
            axes.grid(alpha=0.3, axis="x")
            title = f"{TITLES[name]}, n = {model['num_examples']}" if row == 0 else ""
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(f"{kind} area: {better}", fontsize=8)
            axes.xaxis.set_tick_params(labelbottom=True, labelsize=8)
    save_figure(figure, path, dpi=DPI)
    pyplot.close(figure)


def shown_words(record: Record) -> list[tuple[str, Record]]:
    """Choose the sentences of the picture, each with the reason.

    The classifier's three most confident wrong answers and the right one on which methods disagree most; the
    translation that leaves out most of its source, by length, and the one on which methods disagree most.
    """
    sentiment = record["models"]["sentiment"]["shown"]
    wrong = [one for one in sentiment if one["answer"] != one["truth"]]
    right = [one for one in sentiment if one["answer"] == one["truth"]]
    translations = record["models"]["translation-en-de"]["shown"]
    return [
        *(("wrong", one) for one in wrong[:3]),
        *((("right, most disagreement", min(right, key=disagreement)),) if right else ()),
        ("shortened", min(translations, key=lambda one: len(one["answer"].split()) / len(one["given"].split()))),
        ("most disagreement", min(translations, key=disagreement)),
    ]


def disagreement(shown: Record) -> float:
    """Return the mean rank correlation of all pairs of methods; lower means more disagreement."""
    matrix_NN = np.array(shown["rank_correlation"])
    return float(matrix_NN[np.triu_indices(len(matrix_NN), 1)].mean())


def plot_words(record: Record, path: Path) -> None:
    """Plot sentences, one line per method: red words support the answer, blue ones oppose it."""
    pyplot = pyplot_without_a_screen()
    chosen, methods = shown_words(record), record["methods"]
    lines = len(methods) + 2.2
    figure, grid = pyplot.subplots(-(-len(chosen) // 2), 2, figsize=(14, 0.25 * lines * -(-len(chosen) // 2)))
    figure.subplots_adjust(0.005, 0.0, 0.995, 1.0, wspace=0.02, hspace=0.0)
    renderer = figure.canvas.get_renderer()
    for axes in grid.flat:
        axes.set(xlim=(0, 7), ylim=(lines, 0))
        axes.axis("off")
    for axes, (why, shown) in zip(grid.flat, chosen, strict=False):
        axes.text(0.05, 0.8, f"{why}: {shown['answer']} ({shown['score']:.2f})", fontsize=9, weight="bold", va="center")
        for line, method in enumerate(methods):
            weights_M = np.array(shown["weights"][method])
            largest = np.abs(weights_M).max() or 1.0
            y, x = line + 1.9, 1.42
            axes.text(0.08, y, NAMES[method], fontsize=8.5, va="center", color="#555555")
            for word, weight in zip(shown["names"], weights_M / largest, strict=True):
                colour = np.array(FOR_RGB if weight > 0 else AGAINST_RGB) / 255
                box = {"boxstyle": "square,pad=0.14", "facecolor": (*colour, 0.85 * abs(weight)), "edgecolor": "none"}
                ink = "white" if abs(weight) > 0.75 else "black"
                text = axes.text(x, y, word, fontsize=8.5, va="center", bbox=box, color=ink)
                x += text.get_window_extent(renderer).width / figure.dpi + 0.07
    save_figure(figure, path, dpi=DPI)
    pyplot.close(figure)


def plot_pictures(record: Record, path: Path) -> None:
    """Plot the demonstration pictures, one column per method."""
    pyplot = pyplot_without_a_screen()
    shown, pictures = record["models"]["cifar10-vit"]["shown"], demo_images()
    columns = list(shown[0]["weights"])
    columns.sort(key=lambda column: [*NAMES].index(column.split(",")[0]))
    figure, grid = pyplot.subplots(
        len(shown), len(columns) + 1, figsize=(1.5 * (len(columns) + 1), 1.7 * len(shown)), layout="constrained"
    )
    for row, one in enumerate(shown):
        picture, name = pictures[one["given"]], one["given"]
        grid[row, 0].imshow(np.asarray(picture))
        right = one["answer"] == name
        title = (
            f"{name} ({one['score']:.2f})" if right else f"{name}, classified as\n{one['answer']} ({one['score']:.2f})"
        )
        grid[row, 0].set_title(title, fontsize=8, color="black" if right else "#b2182b")
        for axes, column in zip(grid[row, 1:], columns, strict=True):
            weights_M = np.array(one["weights"][column])
            side = int(len(weights_M) ** 0.5)
            axes.imshow(overlay(picture, weights_M.reshape(side, side)))
            if row == 0:
                method, _, many = column.partition(", ")
                samples = f"\n{many} samples" if many else "\n256 samples" if method in ("lime", "shap") else ""
                axes.set_title(NAMES[method] + samples, fontsize=8)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    save_figure(figure, path, dpi=DPI)
    pyplot.close(figure)


def overlay(picture: Image.Image, weights_RC: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Overlay a grey picture with the weights' colours, with opacity in proportion to the weight."""
    largest = float(np.abs(weights_RC).max()) or 1.0
    side = picture.width // weights_RC.shape[1]
    weights_HW1 = np.kron(weights_RC / largest, np.ones((side, side)))[..., None]
    grey_HW1 = np.asarray(picture.convert("L"), dtype=np.float64)[..., None] * 0.5 + 110
    colour_HW3 = np.where(weights_HW1 > 0, FOR_RGB, AGAINST_RGB)
    strength_HW1 = 0.85 * np.abs(weights_HW1)
    return np.asarray((1 - strength_HW1) * grey_HW1 + strength_HW1 * colour_HW3).clip(0, 255).astype(np.uint8)
