"""Writes docs/interpretability.md from the record of `python -m export explain`.

Every figure of the page comes from the record. Shapes: M features, L layers, H heads, T tokens.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from export.markdown import table
from export.studies.attention_patterns import IMAGE_KINDS, SOURCE_KINDS, TEXT_KINDS
from export.studies.interpretability_plots import (
    NAMES,
    Record,
    best_head,
    plot_agreement,
    plot_alignment,
    plot_areas,
    plot_distances,
    plot_kinds,
    plot_pictures,
    plot_words,
)
from export.whole_files import write_text


def write_page(docs: Path, console: Console) -> None:
    """Write the page and its pictures from `docs/interpretability.json`.

    Raises:
        FileNotFoundError: there is no record yet.
    """
    path = docs / "interpretability.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `python -m export explain` first")
    record = json.loads(path.read_text())
    models = record["models"]
    plot_kinds(models, docs / "interpretability-attention.png")
    plot_distances(models, docs / "interpretability-distance.png")
    plot_alignment(models["translation-en-de"], docs / "interpretability-alignment.png")
    plot_agreement(record, docs / "interpretability-agreement.png")
    plot_areas(models, docs / "interpretability-faithfulness.png")
    plot_words(record, docs / "interpretability-words.png")
    plot_pictures(record, docs / "interpretability-pictures.png")
    write_text(docs / "interpretability.md", "\n".join(page(record)) + "\n")
    console.print(f"written: {docs / 'interpretability.md'}")


def page(record: Record) -> list[str]:
    """Write the lines of the page."""
    models = record["models"]
    return [
        "# What the models attend to, and which explanation to trust",
        "",
        f"Written by `{record['command']}`, run until it was finished, on {record['machine']}, at commit"
        f" {', '.join(sorted({commit for model in models.values() for commit in model['commits']}))}; every figure"
        " is in [interpretability.json](interpretability.json). "
        + "; ".join(
            f"{name} ({model['precision']}, version {model['version']}): {model['num_examples']} examples of"
            f" {model['data']}"
            for name, model in models.items()
        )
        + f", drawn by seed {record['seed']}. Intervals (±) are 95 % intervals, except in the picture of agreement. All"
        " sentences and pictures shown are this repository's own.",
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
    """Write the advice for users who choose a method of explanation."""
    words, pieces, images = models["sentiment"], models["translation-en-de"], models["cifar10-vit"]
    default, many = images["repeated"]
    few_of_text, many_of_text = words["repeated"]
    return [
        "## Recommendations",
        "",
        "- **For a classified text, use `shap` or `lime`**: these two rank best the words that the answer depends on."
        f" With {words['features']['mean']:.0f} words a text and 256 samples, the default, the rankings of two seeds"
        f" correlate with {few_of_text['lime']['mean']:.2f} and {few_of_text['shap']['mean']:.2f}; with `n_samples`"
        f" of {many_of_text['n_samples']:,} it is {many_of_text['lime']['mean']:.2f} and"
        f" {many_of_text['shap']['mean']:.2f}. `occlusion` takes one {cost_ratio(words):.0f}th of LIME's time"
        f" but ranks worse (deletion area {words['areas']['occlusion']['deletion']['mean']:.2f} against"
        f" {words['areas']['lime']['deletion']['mean']:.2f}): it gives no weight to two words that say the same.",
        "- **For a translation, use `occlusion`**, the default: it ranks as well as the other two, takes one"
        f" {cost_ratio(pieces):.0f}th of LIME's time, needs no random samples, and gives the weight of each word for"
        " each token.",
        "- **Integrated gradients** are as good as occlusion on sentiment and worse elsewhere. They need no random"
        " samples, and explain the logit, not the probability.",
        "- **Attention does not explain the classifier's answers**: on sentiment it ranks words hardly better than a"
        " random order. On translation it is as good as gradients, and shows the source word of a token.",
        f"- **For an image, use `lime` with `n_samples` of {many['n_samples']:,} or more.** Even with 256, the"
        " default, its ranking of patches is the best, but do not trust single patches then: two seeds agree"
        f" with a rank correlation of {default['lime']['mean']:.2f} (`shap`: {default['shap']['mean']:.2f}); with"
        f" {many['n_samples']:,} it is {many['lime']['mean']:.2f} ({many['shap']['mean']:.2f}). `occlusion` needs no"
        " random samples, and ranks as well as `shap`.",
        "- If two methods disagree about the most important feature, compare the `fidelity` of the two answers.",
    ]


def cost_ratio(model: Record) -> float:
    """Return the ratio of LIME's CPU time to occlusion's."""
    return float(model["cpu_s"]["lime"] / model["cpu_s"]["occlusion"])


def faithfulness(record: Record) -> list[str]:
    """Write the section on faithfulness: deletion and insertion areas."""
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
        "## Faithfulness of the weights",
        "",
        "Features are removed, most important first (deletion: a smaller area is better), or added (insertion: a"
        " larger area is better), as in `fidelity` of the service. The score is the probability of the answer; for a"
        " translation it is the mean probability of its tokens. Differences to the random order use the same examples;"
        " time is the median for one answer.",
        "",
        "![deletion and insertion areas of each method](interpretability-faithfulness.png)",
        *table(columns, rows),
        "",
        "The curves remove features as occlusion, LIME and KernelSHAP do. This gives these three an advantage over"
        " attention and gradients, which no such test can avoid.",
    ]


def agreement(record: Record) -> list[str]:
    """Write the section on agreement between methods, and of sampling methods between seeds."""
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
        "## Agreement of the methods",
        "",
        "![rank correlations of all pairs of methods](interpretability-agreement.png)",
        "",
        "How often two methods have the same most important feature:",
        *table(("model", *(" and ".join(NAMES[method] for method in pair) for pair in pairs)), tops),
        "",
        "Attention has no sign, but this does not explain its low correlations: with the absolute weights of the other"
        " methods, its mean rank correlations are "
        + "; ".join(
            f"{name} {least_and_most(np.array(model['rank_correlation_of_sizes'])[0, 1:])}"
            for name, model in record["models"].items()
        )
        + ".",
        "",
        "The upper limit of agreement is that of a sampling method with itself under another seed:",
        *table(("model", "samples", "n", "LIME", "KernelSHAP"), rows),
    ]


def least_and_most(values: NDArray[np.float64]) -> str:
    """Format the range of values."""
    return f"{values.min():.2f} to {values.max():.2f}"


def attended(models: Record) -> list[str]:
    """Write the section on the attention of the heads."""
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
        "## Attention patterns",
        "",
        "![where the attention of each layer goes](interpretability-attention.png)",
        "",
        "![mean attention distance of each head](interpretability-distance.png)",
        "",
        f"- **sentiment** (MiniLM, fine-tuned): from its second layer on the heads put {100 * first_LH[1:].mean():.0f}"
        f" % of their weight on [CLS] (even attention: {100 * sentiment['even_shares'][0]:.0f} %). The answer is"
        " computed from the mean of all vectors, so [CLS] counts no more than any other token. Heads attend to it when"
        " they find no relevant token (Clark et al. 2019, arXiv 1906.04341, for BERT). Attention rollout is therefore"
        " hardly informative here. The remaining weight is spread, except in a few heads: the mean distance of layer"
        f" {near[0] + 1}, head {near[1] + 1} is {distance_LH.min():.1f} tokens (even:"
        f" {sentiment['even_distance']:.1f}).",
        "- **translation-en-de** attends to close tokens in early layers and to distant ones in later layers: the mean"
        " distance in the encoder grows from"
        f" {np.array(translation['distance']).mean(axis=1)[0]:.1f} to"
        f" {np.array(translation['distance']).mean(axis=1)[-1]:.1f} tokens (even: {translation['even_distance']:.1f})."
        f" Its most local head (layer {layer + 1}, head {head + 1}) has {100 * neighbours_LH.max():.0f} % of its"
        f" weight on the two neighbours (even: {100 * even_neighbours:.0f} %). There is no [CLS], and the end of the"
        " sentence does not take its role.",
        "- **cifar10-vit** attends to the whole image from its first layer on: mean distances are"
        f" {image_distance_LH[0].min():.1f} to {image_distance_LH[0].max():.1f} pixels in layer 1 and"
        f" {image_distance_LH[-1].min():.1f} to {image_distance_LH[-1].max():.1f} in the last (even:"
        f" {image['even_distance']:.1f}). The eight neighbouring patches get {100 * around_L[0]:.0f} % in the first"
        f" layer and {100 * around_L[-1]:.0f} % in the last (even:"
        f" {100 * image['even_shares'][IMAGE_KINDS.index('around')]:.0f} %). The local heads of large vision"
        " transformers (Dosovitskiy et al. 2021, figure 7) are missing, because the convolutions that make its tokens"
        " already combine neighbouring pixels.",
    ]


def translations(model: Record) -> list[str]:
    """Write the section on cross-attention as a word alignment."""
    cross = model["patterns"]["cross"]
    aligned_LH, off_LH = np.array(cross["aligned"]), np.array(cross["off_the_diagonal"])
    layer, head = best_head(model)
    straight = np.unravel_index(off_LH.argmin(), off_LH.shape)
    to_end_LH = np.array(cross["shares"])[..., SOURCE_KINDS.index("last")]
    return [
        "",
        "## Cross-attention as word alignment",
        "",
        "The reference is occlusion, token by token: the word whose removal costs the token most probability.",
        "",
        "![alignment of each head with occlusion, and one sentence](interpretability-alignment.png)",
        "",
        f"Layer {layer + 1}, head {head + 1} attends most to that word for {100 * aligned_LH.max():.0f} % of the"
        f" tokens; the mean of all heads and layers for {100 * cross['aligned_mean_of_heads']:.0f} %, the word at the"
        f" same place of the sentence for {100 * cross['aligned_same_place']:.0f} %, any word for"
        f" {100 * cross['aligned_by_chance']:.0f} %. By layer, the heads reach {100 * aligned_LH[0].mean():.0f} and"
        f" {100 * aligned_LH[1].mean():.0f} % on average. Attention to the source lies {off_LH.mean():.2f} of the"
        f" sentence off the diagonal on average (even attention: {cross['even_off_the_diagonal']:.2f}), least in layer"
        f" {straight[0] + 1}, head {straight[1] + 1} ({off_LH.min():.2f}); {100 * to_end_LH.mean():.0f} % goes to the"
        " end of the sentence.",
    ]


def wrong_answers(record: Record) -> list[str]:
    """Write the section on explained wrong answers."""
    sentiment = record["models"]["sentiment"]["shown"]
    house = next(one for one in record["models"]["cifar10-vit"]["shown"] if one["given"] == "house")
    wrong = [one for one in sentiment if one["answer"] != one["truth"]][:3]
    first, second, third = (word_of(one, "shap") for one in wrong)
    return [
        "",
        "## Explained wrong answers",
        "",
        "Red words support the answer, blue ones oppose it; colours are scaled to each line, scores are in brackets.",
        "",
        "![sentences of our own, coloured by each method](interpretability-words.png)",
        "",
        f'The three wrong answers depend on single words, "{first}", "{second}" and "{third}" (KernelSHAP): the'
        " classifier follows such a word where the sentence says the opposite. All methods except attention show it."
        ' The shortened translation omits that the book is not yet read: for methods that remove words, "not" and "yet"'
        f" have at most {100 * weight_of_lost(record, ('occlusion', 'lime', 'shap')):.0f} % of the largest"
        f" weight; attention gives them up to {100 * weight_of_lost(record, ('attention',)):.0f} %.",
        "",
        "![pictures of our own under the weights of each method](interpretability-pictures.png)",
        "",
        f"A house is not among CIFAR-10's classes; the classifier answers {article(house['answer'])} with a low score"
        f" of {house['score']:.2f}. With 256 samples LIME and KernelSHAP are mostly noise"
        " on 64 patches; with 2,048 they find hull, wheels and fuselage.",
    ]


def weight_of_lost(record: Record, methods: Sequence[str]) -> float:
    """Return the weight of the omitted `not` and `yet`, as a fraction of the largest weight."""
    shown = next(one for one in record["models"]["translation-en-de"]["shown"] if "not yet read" in one["given"])
    places = [shown["names"].index(word) for word in ("not", "yet")]
    weights = [np.abs(shown["weights"][method]) for method in methods]
    return float(max(weights_M[places].max() / weights_M.max() for weights_M in weights))


def word_of(shown: Record, method: str) -> str:
    """Return the word with the largest weight."""
    return str(shown["names"][int(np.argmax(shown["weights"][method]))])


def article(noun: str) -> str:
    """Put `a` or `an` before a noun."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def how_measured() -> list[str]:
    """Write the section on how the figures were measured."""
    return [
        "",
        "## Methods",
        "",
        "- Features are the service's: words, or an 8 x 8 grid of patches; removed patches get the image's mean colour."
        " Methods are those of `service/explanation/methods/`, with their defaults, on the committed graphs in one"
        " thread.",
        "- Attention is rolled out through the layers (Abnar and Zuidema 2020), with equal weights for the"
        " tokens of the last layer. For translations it is the mean attention to the source, combined with the"
        " encoder's rollout (the service omits the rollout). Gradients are integrated over 32 steps (Sundararajan et"
        " al. 2017; the service uses 64 or more) and summed over the tokens of a word.",
        "- The baseline of every attention figure is even attention: the same weight for every token.",
        "- Tests compare the methods with lime, shap, captum and PyTorch:"
        " `tests/service/explanation/methods/test_oracles.py` and"
        " `tests/export/conversion/test_explanation_oracles.py`.",
        "- There is one model of each kind, trained here on short sentences and small images; others may differ. The"
        " sentiment model is served in int8, so its scores change a little with the batch; its gradients use the same"
        " weights in float32.",
    ]


def with_interval(measured: Record, digits: int = 3) -> str:
    """Format a mean and its interval."""
    return f"{measured['mean']:.{digits}f} ± {measured['half_width']:.{digits}f}"
