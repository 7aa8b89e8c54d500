"""docs/interpretability.md and its pictures, from the record that `python -m export explain` has made.

Every figure of the page is one of the record's. Shapes: M features, L layers, H heads, T tokens.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from export.markdown import pyplot_without_a_screen, table
from export.studies.attention_patterns import IMAGE_KINDS, SOURCE_KINDS, TEXT_KINDS
from export.studies.demo_images import drawn_pictures
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
    "before": "token before",
    "after": "token after",
    "around": "the 8 patches around",
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


def write_page(docs: Path, console: Console) -> None:
    """Write the page and its pictures from `docs/interpretability.json`.

    Raises:
        FileNotFoundError: there is no record yet.
    """
    path = docs / "interpretability.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run `python -m export explain` first")
    record = json.loads(path.read_text())
    models = record["models"]
    plot_kinds(models, docs / "interpretability-attention.png")
    plot_distances(models, docs / "interpretability-distance.png")
    plot_alignment(models["translation-en-de"], docs / "interpretability-alignment.png")
    plot_agreement(record, docs / "interpretability-agreement.png")
    plot_areas(models, docs / "interpretability-faithfulness.png")
    plot_words(record, docs / "interpretability-words.png")
    plot_pictures(record, docs / "interpretability-pictures.png")
    (docs / "interpretability.md").write_text("\n".join(page(record)) + "\n")
    console.print(f"written: {docs / 'interpretability.md'}")


# --- pictures --------------------------------------------------------------------------------------------------------


def kinds_of(name: str) -> Sequence[str]:
    """The kinds of tokens that the shares of a model's own attention stand for."""
    return IMAGE_KINDS if name == "cifar10-vit" else TEXT_KINDS


def plot_kinds(models: Record, path: Path) -> None:
    """Where the attention of each layer goes, a bar a layer, and where even attention would go."""
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
                (f"{prefix}{layer + 1}", dict(zip(kinds, shares, strict=True))) for layer, shares in enumerate(layers)
            ]
            rows.append(("even", dict(zip(kinds, found["even_shares"], strict=True))))
        for place, (label, shares) in enumerate(rows):
            left, faint = 0.0, 0.45 if label == "even" else 1.0
            for kind, kind_name in KIND_NAMES.items():
                share = shares.get(kind, 0.0)
                if not share:
                    continue
                bar = axes.barh(place, share, left=left, color=KIND_COLOURS[kind], edgecolor="white", alpha=faint)
                shown.setdefault(kind_name, bar)
                if share >= 0.07:
                    axes.text(left + share / 2, place, f"{100 * share:.0f}", ha="center", va="center", size=7)
                left += share
            bars.append(label)
        axes.set_yticks(range(len(bars)), bars, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xticks=[], title=name)
    order = [name for name in KIND_NAMES.values() if name in shown]
    figure.legend([shown[name] for name in order], order, loc="outside lower center", ncols=8, fontsize=8)
    figure.suptitle("Where attention goes, % of the weight, mean of heads and examples", fontsize=10)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def plot_distances(models: Record, path: Path) -> None:
    """Mean attention distance of each head by layer (Dosovitskiy et al. 2021, fig. 7), and the mean entropy."""
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
        axes.axhline(found["even_distance"], color="#b2182b", linestyle="--", linewidth=1, label="even attention")
        highest = max(distance_LH.max(), found["even_distance"])
        axes.set(title=name, xlabel="layer", xticks=layers, ylim=(0, 1.08 * highest))
        axes.set_ylabel("pixels" if name == "cifar10-vit" else "tokens")
        axes.grid(alpha=0.3)
    grid[0].legend(fontsize=8, loc="lower right")
    bar = figure.colorbar(dots, ax=list(grid), label="entropy (1: even)")
    bar.ax.tick_params(labelsize=8)
    figure.suptitle("How far each head looks: a dot a head, mean of examples", fontsize=10)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def best_head(model: Record) -> tuple[int, int]:
    """Layer and head, from 0, whose attention to the source agrees most with occlusion."""
    aligned_LH = np.array(model["patterns"]["cross"]["aligned"])
    layer, head = np.unravel_index(aligned_LH.argmax(), aligned_LH.shape)
    return int(layer), int(head)


def plot_alignment(model: Record, path: Path) -> None:
    """Which head looks at the word that counts, and one sentence by that head and by occlusion."""
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
        ("aligned_mean_of_heads", "all heads together", "#8c6bb1"),
        ("aligned_same_place", "word at the same place", "#d95f02"),
        ("aligned_by_chance", "any word", "#888888"),
    ):
        grid[0].axhline(100 * cross[key], color=colour, linestyle="--", linewidth=1.2, label=label)
    ticks = [number * (H + 1) + h for number in range(len(aligned_LH)) for h in range(H)]
    grid[0].set_xticks(ticks, [str(h + 1) for _ in aligned_LH for h in range(H)], fontsize=7)
    grid[0].set(ylim=(0, 100), ylabel="% of target tokens")
    grid[0].set_title("heads that look where occlusion says", fontsize=10)
    grid[0].legend(fontsize=8, loc="upper right")
    example = model["shown"][0]
    K = len(example["pieces"]) - 1
    attention_KM = np.array(example["attention_to_words"]).mean(axis=(0, 1))[:K]
    influence_KM = np.array(example["influence"]).T[:K]
    influence_KM = np.maximum(influence_KM, 0)
    for axes, matrix_KM, title in (
        (grid[1], attention_KM, "attention, mean of all heads; each row by its largest"),
        (grid[2], influence_KM, "occlusion; each row by its largest"),
    ):
        shown_KM = matrix_KM / matrix_KM.max(axis=1, keepdims=True)
        axes.imshow(shown_KM, cmap="Greens", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(example["names"])), example["names"], rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(K), [piece.strip() for piece in example["pieces"][:K]], fontsize=8)
        axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def plot_agreement(record: Record, path: Path) -> None:
    """The mean rank correlation of every pair of methods, and how much it varies from example to example."""
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
    figure.suptitle("How far methods agree on one answer: mean rank correlation of weights ± deviation", fontsize=10)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def plot_areas(models: Record, path: Path) -> None:
    """Deletion and insertion area of each method with 95 % intervals, and where a random order lies."""
    pyplot = pyplot_without_a_screen()
    figure, grid = pyplot.subplots(2, 3, figsize=(12, 4.8), layout="constrained")
    for column, (name, model) in enumerate(models.items()):
        for row, (kind, better) in enumerate((("deletion", "less is better"), ("insertion", "more is better"))):
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
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def shown_words(record: Record) -> list[tuple[str, Record]]:
    """The sentences of the picture, with why they are there.

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
    """The mean rank correlation of the pairs of methods: the less, the more they disagree."""
    matrix_NN = np.array(shown["rank_correlation"])
    return float(matrix_NN[np.triu_indices(len(matrix_NN), 1)].mean())


def plot_words(record: Record, path: Path) -> None:
    """Sentences of our own, a line a method: red speaks for the answer, blue against it."""
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
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def plot_pictures(record: Record, path: Path) -> None:
    """Pictures of our own, a column a method."""
    pyplot = pyplot_without_a_screen()
    shown, pictures = record["models"]["cifar10-vit"]["shown"], drawn_pictures()
    columns = list(shown[0]["weights"])
    columns.sort(key=lambda column: [*NAMES].index(column.split(",")[0]))
    figure, grid = pyplot.subplots(
        len(shown), len(columns) + 1, figsize=(1.5 * (len(columns) + 1), 1.7 * len(shown)), layout="constrained"
    )
    for row, one in enumerate(shown):
        picture, name = pictures[one["given"]], one["given"]
        grid[row, 0].imshow(np.asarray(picture))
        right = one["answer"] == name
        title = f"{name} ({one['score']:.2f})" if right else f"{name}, taken for\n{one['answer']} ({one['score']:.2f})"
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
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def overlay(picture: Image.Image, weights_RC: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The picture in grey under the weights' colours, each in the strength of its weight."""
    largest = float(np.abs(weights_RC).max()) or 1.0
    side = picture.width // weights_RC.shape[1]
    weights_HW1 = np.kron(weights_RC / largest, np.ones((side, side)))[..., None]
    grey_HW1 = np.asarray(picture.convert("L"), dtype=np.float64)[..., None] * 0.5 + 110
    colour_HW3 = np.where(weights_HW1 > 0, FOR_RGB, AGAINST_RGB)
    strength_HW1 = 0.85 * np.abs(weights_HW1)
    return np.asarray((1 - strength_HW1) * grey_HW1 + strength_HW1 * colour_HW3).clip(0, 255).astype(np.uint8)


# --- the page --------------------------------------------------------------------------------------------------------


def page(record: Record) -> list[str]:
    """Its lines."""
    models = record["models"]
    return [
        "# What the models attend to, and which explanation to trust",
        "",
        f"Made by `{record['command']}`, called until it was done, on {record['machine']}, at commit"
        f" {', '.join(sorted({commit for model in models.values() for commit in model['commits']}))}; every figure"
        " stands in [interpretability.json](interpretability.json). "
        + "; ".join(
            f"{name} ({model['precision']}, version {model['version']}): {model['num_examples']} examples of"
            f" {model['data']}"
            for name, model in models.items()
        )
        + f", drawn by seed {record['seed']}. Intervals (±) are 95 %, but for the picture of agreement. Sentences and"
        " pictures that are shown are this repository's own.",
        "",
        *in_short(models),
        *faithfulness(record),
        *agreement(record),
        *attended(models),
        *translations(models["translation-en-de"]),
        *wrong_answers(record),
        *how_measured(),
    ]


def in_short(models: Record) -> list[str]:
    """What follows for somebody who asks for an explanation."""
    words, pieces, images = models["sentiment"], models["translation-en-de"], models["cifar10-vit"]
    default, many = images["repeated"]
    few_of_text, many_of_text = words["repeated"]
    return [
        "## What follows",
        "",
        "- **Of a classified text, take `shap` or `lime`**: of all methods these two say best which words the answer"
        f" rests on. At {words['features']['mean']:.0f} words a text and 256 samples, the default, two seeds rank them"
        f" with a correlation of {few_of_text['lime']['mean']:.2f} and {few_of_text['shap']['mean']:.2f}; `n_samples`"
        f" of {many_of_text['n_samples']:,} make it {many_of_text['lime']['mean']:.2f} and"
        f" {many_of_text['shap']['mean']:.2f}. `occlusion` takes one {cost_ratio(words):.0f}th of LIME's time"
        f" and is worth less (deletion area {words['areas']['occlusion']['deletion']['mean']:.2f} against"
        f" {words['areas']['lime']['deletion']['mean']:.2f}): what two words both say it gives to neither.",
        "- **Of a translation, take `occlusion`**, the default: it does as well as the two, in one"
        f" {cost_ratio(pieces):.0f}th of LIME's time, draws nothing, and gives each word's part in each token.",
        "- **Integrated gradients** are as good as occlusion on sentiment and stay behind elsewhere. They draw"
        " nothing, and explain the logit, not the probability.",
        "- **Attention does not explain the classifier's answers**: on sentiment its order of words is little better"
        " than a random one. On translation it is worth as much as gradients, and shows which word a token comes"
        " from.",
        f"- **Of an image, take `lime` with `n_samples` of {many['n_samples']:,} or more.** Even with 256, the"
        " default, its order of patches is worth most, but no single patch is to be trusted then: two seeds agree"
        f" with a rank correlation of {default['lime']['mean']:.2f} (`shap`: {default['shap']['mean']:.2f}); with"
        f" {many['n_samples']:,} it is {many['lime']['mean']:.2f} ({many['shap']['mean']:.2f}). `occlusion` draws"
        " nothing, and its order is worth as much as that of `shap`.",
        "- Where two methods disagree on what counts most, compare the `fidelity` that each of the two answers"
        " carries, rather than the methods' names.",
    ]


def cost_ratio(model: Record) -> float:
    """How many times as long LIME takes as occlusion."""
    return float(model["cpu_s"]["lime"] / model["cpu_s"]["occlusion"])


def faithfulness(record: Record) -> list[str]:
    """Deletion and insertion areas."""
    rows = []
    for name, model in record["models"].items():
        for method, area in model["areas"].items():
            cells = [name, NAMES[method]]
            for kind in ("deletion", "insertion"):
                gain = area[kind]["less_random"]
                cells.append(with_interval(area[kind]))
                cells.append("" if method == "random" else f"{gain['mean']:+.3f} ± {gain['half_width']:.3f}")
            cells.append(f"{1000 * model['cpu_s'][method]:.0f}" if method in model["cpu_s"] else "")
            rows.append(cells)
    columns = ("model", "order by", "deletion area", "less random", "insertion area", "less random", "ms of one core")
    return [
        "",
        "## Do the weights say what the answer rests on?",
        "",
        "Features go, most important first (deletion: the sooner the score falls, the less the area and the better),"
        " or come (insertion: the more the better), as in `fidelity` of the service. The score is the probability of"
        " the answer, of a translation the mean probability of its tokens. Differences to the random order are of the"
        " same examples; time is the median of an answer.",
        "",
        "![deletion and insertion areas of each method](interpretability-faithfulness.png)",
        *table(columns, rows),
        "",
        "The curves take features away as occlusion, LIME and KernelSHAP do, which gives these three an advantage"
        " over attention and gradients that no such test can rid itself of.",
    ]


def agreement(record: Record) -> list[str]:
    """Between methods, and of those that draw with themselves."""
    rows = []
    for name, model in record["models"].items():
        for repeated in model["repeated"]:
            samples = f"{repeated['n_samples']:,}" if repeated["n_samples"] else "default (256)"
            cells = [with_interval(repeated[method], 2) for method in ("lime", "shap")]
            rows.append([name, samples, str(repeated["num_examples"]), *cells])
    tops, pairs = [], [("lime", "shap"), ("occlusion", "shap"), ("gradients", "shap"), ("attention", "shap")]
    for name, model in record["models"].items():
        places = [[record["methods"].index(method) for method in pair] for pair in pairs]
        tops.append([name, *(f"{100 * model['same_top'][one][other]:.0f} %" for one, other in places)])
    return [
        "",
        "## Where methods agree",
        "",
        "![rank correlations of all pairs of methods](interpretability-agreement.png)",
        "",
        "How often two methods name the same feature as the most important one:",
        *table(("model", *(" and ".join(NAMES[method] for method in pair) for pair in pairs)), tops),
        "",
        "Attention has no sign; that is not why it stands apart: with the sizes of the others' weights, its mean rank"
        " correlations are "
        + "; ".join(
            f"{name} {least_and_most(np.array(model['rank_correlation_of_sizes'])[0, 1:])}"
            for name, model in record["models"].items()
        )
        + ".",
        "",
        "The ceiling of all this is how far a method that draws agrees with itself by another seed:",
        *table(("model", "samples", "n", "LIME", "KernelSHAP"), rows),
    ]


def least_and_most(values: NDArray[np.float64]) -> str:
    """The range."""
    return f"{values.min():.2f} to {values.max():.2f}"


def attended(models: Record) -> list[str]:
    """What the heads look at."""
    sentiment, image = (models[name]["patterns"]["self"] for name in ("sentiment", "cifar10-vit"))
    translation = models["translation-en-de"]["patterns"]["self"]
    first_LH = np.array(sentiment["shares"])[:, :, TEXT_KINDS.index("first")]
    distance_LH = np.array(sentiment["distance"])
    near = np.unravel_index(distance_LH.argmin(), distance_LH.shape)
    neighbours_LH = np.array(translation["shares"])[..., [TEXT_KINDS.index("before"), TEXT_KINDS.index("after")]].sum(
        axis=-1
    )
    even_neighbours = sum(translation["even_shares"][TEXT_KINDS.index(kind)] for kind in ("before", "after"))
    layer, head = np.unravel_index(neighbours_LH.argmax(), neighbours_LH.shape)
    around_L = np.array(image["shares"])[..., IMAGE_KINDS.index("around")].mean(axis=1)
    image_distance_LH = np.array(image["distance"])
    return [
        "",
        "## What attention looks at",
        "",
        "![where the attention of each layer goes](interpretability-attention.png)",
        "",
        "![how far each head looks](interpretability-distance.png)",
        "",
        f"- **sentiment** (MiniLM, fine-tuned): from its second layer on the heads put {100 * first_LH[1:].mean():.0f}"
        f" % of their weight on [CLS] (even attention: {100 * sentiment['even_shares'][0]:.0f} %), whose vector no"
        " more than any other goes into the answer, which is made of the mean of all. Heads look there that find"
        " nothing to look for (Clark et al. 2019, arXiv 1906.04341, of BERT). This is why rollout says so little"
        f" here. What is left is spread, but for a few heads: layer {near[0] + 1}, head {near[1] + 1} looks"
        f" {distance_LH.min():.1f} tokens far on average (even: {sentiment['even_distance']:.1f}).",
        "- **translation-en-de** looks near first and further later: the mean distance in the encoder grows from"
        f" {np.array(translation['distance']).mean(axis=1)[0]:.1f} to"
        f" {np.array(translation['distance']).mean(axis=1)[-1]:.1f} tokens (even: {translation['even_distance']:.1f})."
        f" Its most local head (layer {layer + 1}, head {head + 1}) has {100 * neighbours_LH.max():.0f} % of its"
        f" weight on the two neighbours (even: {100 * even_neighbours:.0f} %). There is no [CLS], and the end of the"
        " sentence is no such dump.",
        "- **cifar10-vit** looks at the whole image from its first layer on: heads look"
        f" {image_distance_LH[0].min():.1f} to {image_distance_LH[0].max():.1f} pixels far in layer 1 and"
        f" {image_distance_LH[-1].min():.1f} to {image_distance_LH[-1].max():.1f} in the last (even:"
        f" {image['even_distance']:.1f}). The eight patches around get {100 * around_L[0]:.0f} % in the first layer"
        f" and {100 * around_L[-1]:.0f} % in the last (even:"
        f" {100 * image['even_shares'][IMAGE_KINDS.index('around')]:.0f} %). The local heads of large vision"
        " transformers (Dosovitskiy et al. 2021, figure 7) are missing: what is near is seen by the convolutions that"
        " make its tokens.",
    ]


def translations(model: Record) -> list[str]:
    """Cross-attention as an alignment."""
    cross = model["patterns"]["cross"]
    aligned_LH, off_LH = np.array(cross["aligned"]), np.array(cross["off_the_diagonal"])
    layer, head = best_head(model)
    straight = np.unravel_index(off_LH.argmin(), off_LH.shape)
    to_end_LH = np.array(cross["shares"])[..., SOURCE_KINDS.index("last")]
    return [
        "",
        "## Which word a token comes from",
        "",
        "The judge is occlusion, token by token: the word without which the token loses most probability.",
        "",
        "![heads that look at the word that counts, and one sentence](interpretability-alignment.png)",
        "",
        f"Layer {layer + 1}, head {head + 1} looks at that word for {100 * aligned_LH.max():.0f} % of the tokens; the"
        f" mean of all heads and layers for {100 * cross['aligned_mean_of_heads']:.0f} %, the word at the same place"
        f" of the sentence for {100 * cross['aligned_same_place']:.0f} %, any word for"
        f" {100 * cross['aligned_by_chance']:.0f} %. By layer, the heads reach {100 * aligned_LH[0].mean():.0f} and"
        f" {100 * aligned_LH[1].mean():.0f} % on average. Attention to the source lies {off_LH.mean():.2f} of the"
        f" sentence off the diagonal on average (even attention: {cross['even_off_the_diagonal']:.2f}), least in layer"
        f" {straight[0] + 1}, head {straight[1] + 1} ({off_LH.min():.2f}); {100 * to_end_LH.mean():.0f} % goes to the"
        " end of the sentence.",
    ]


def wrong_answers(record: Record) -> list[str]:
    """Examples."""
    sentiment = record["models"]["sentiment"]["shown"]
    house = next(one for one in record["models"]["cifar10-vit"]["shown"] if one["given"] == "house")
    wrong = [one for one in sentiment if one["answer"] != one["truth"]][:3]
    first, second, third = (word_of(one, "shap") for one in wrong)
    return [
        "",
        "## Wrong answers, explained",
        "",
        "Red speaks for the answer, blue against it, by the largest weight of each line; in brackets the score.",
        "",
        "![sentences of our own, coloured by each method](interpretability-words.png)",
        "",
        f'The three wrong ones hang on single words, "{first}", "{second}" and "{third}" (KernelSHAP): the classifier'
        " goes by such a word where the sentence says the contrary. All methods but attention show it at a glance. The"
        ' shortened translation leaves out that the book is not yet read: to all that takes words away, "not" and "yet"'
        f" are worth at most {100 * weight_of_lost(record, ('occlusion', 'lime', 'shap')):.0f} % of the weightiest"
        f" word, while attention gives them up to {100 * weight_of_lost(record, ('attention',)):.0f} %.",
        "",
        "![pictures of our own under the weights of each method](interpretability-pictures.png)",
        "",
        f"The house is none of CIFAR-10's classes; the classifier takes it for {article(house['answer'])} with"
        f" {house['score']:.2f}, as uncertain as it should be. With 256 samples LIME and KernelSHAP are mostly noise"
        " on 64 patches; with 2,048 they find hull, wheels and fuselage.",
    ]


def weight_of_lost(record: Record, methods: Sequence[str]) -> float:
    """What `not` and `yet` are worth at most in the translation that leaves them out, as a share of the largest."""
    shown = next(one for one in record["models"]["translation-en-de"]["shown"] if "not yet read" in one["given"])
    places = [shown["names"].index(word) for word in ("not", "yet")]
    weights = [np.abs(shown["weights"][method]) for method in methods]
    return float(max(weights_M[places].max() / weights_M.max() for weights_M in weights))


def word_of(shown: Record, method: str) -> str:
    """The word with the largest weight."""
    return str(shown["names"][int(np.argmax(shown["weights"][method]))])


def article(noun: str) -> str:
    """With a or an."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def how_measured() -> list[str]:
    """What stands behind the words."""
    return [
        "",
        "## How it was measured",
        "",
        "- Features are the service's: words, or an 8 x 8 grid of patches that become the image's mean colour."
        " Methods are those of `service/explanation/methods/`, with their defaults, on the committed graphs in one"
        " thread.",
        "- Attention is rolled out through the layers (Abnar and Zuidema 2020), the tokens of the last layer weighed"
        " alike; for translations the mean attention to the source, through the encoder's rollout (the service gives"
        " it without that). Gradients are integrated over 32 steps (Sundararajan et al. 2017; the service takes 64 or"
        " more) and summed over the tokens of a word.",
        "- Even attention, the same weight for every token, is what each figure of attention has to be compared with.",
        "- That the methods compute what lime, shap, captum and PyTorch compute is tested in"
        " `tests/service/explanation/methods/test_oracles.py` and"
        " `tests/export/conversion/test_explanation_oracles.py`.",
        "- One model of each kind, trained here, on short sentences and small images; others may differ. sentiment is"
        " served in int8, whose scores change a little with the batch; its gradients are of the same weights in"
        " float32.",
    ]


def with_interval(measured: Record, digits: int = 3) -> str:
    """A mean and its interval."""
    return f"{measured['mean']:.{digits}f} ± {measured['half_width']:.{digits}f}"
