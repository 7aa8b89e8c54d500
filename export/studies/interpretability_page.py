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
        "# Comparison of explanation methods, and attention patterns",
        "",
        "An explanation gives each feature of the input (a word, or a patch of an image) a weight: its influence on the"
        " model's answer. This page compares five methods that compute such weights (attention rollout, integrated"
        " gradients, occlusion, LIME and KernelSHAP) on three served models, and describes where these models attend.",
        "",
        *recommendations(models),
        *faithfulness(record),
        *agreement(record),
        *attended(models),
        *translations(models["translation-en-de"]),
        *wrong_answers(record),
        *how_measured(record),
    ]


def recommendations(models: Record) -> list[str]:
    """Write the advice for users who choose a method of explanation."""
    words, pieces, images = models["sentiment"], models["translation-en-de"], models["cifar10-vit"]
    default, many = images["repeated"]
    few_of_text, many_of_text = words["repeated"]
    return [
        "## Recommendations",
        "",
        "- **Text classification: use `shap` or `lime`.** These two methods rank the important words best. Their"
        f" weights depend on random samples. For texts of {words['features']['mean']:.0f} words on average and 256"
        " samples (the default), the weights of two seeds have a rank correlation of"
        f" {few_of_text['lime']['mean']:.2f} (`lime`) and {few_of_text['shap']['mean']:.2f} (`shap`). With `n_samples`"
        f" of {many_of_text['n_samples']:,} it is {many_of_text['lime']['mean']:.2f} and"
        f" {many_of_text['shap']['mean']:.2f}. `occlusion` takes 1/{cost_ratio(words):.0f} of LIME's time but ranks"
        f" worse (deletion area {words['areas']['occlusion']['deletion']['mean']:.2f} against"
        f" {words['areas']['lime']['deletion']['mean']:.2f}): it removes one word at a time, so it gives no weight to"
        " two words with the same meaning.",
        "- **Translation: use `occlusion`**, the default. It ranks words as well as LIME and KernelSHAP, takes"
        f" 1/{cost_ratio(pieces):.0f} of LIME's time and needs no random samples. It gives a weight to each source word"
        " for each target token.",
        f"- **Image classification: use `lime` with `n_samples` of {many['n_samples']:,} or more.** With 256 samples"
        " (the default) it already ranks patches best, but the weight of a single patch is not reliable: the weights of"
        f" two seeds have a rank correlation of {default['lime']['mean']:.2f} (`shap`: {default['shap']['mean']:.2f})."
        f" With {many['n_samples']:,} samples it is {many['lime']['mean']:.2f} (`shap`: {many['shap']['mean']:.2f})."
        " `occlusion` needs no random samples, and ranks patches as well as `shap`.",
        "- **Integrated gradients** rank words as well as occlusion on sentiment, and worse than occlusion on the other"
        " two models. They need no random samples. They explain the logit, not the probability.",
        "- **Attention does not explain the answers of the text classifier**: on sentiment it ranks words hardly better"
        " than a random order. On translation it ranks words as well as integrated gradients, and shows which source"
        " word belongs to a target token.",
        "- If two methods disagree about the most important feature, compare the `fidelity` of their two responses.",
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
    columns = (
        "model",
        "ranking by",
        "deletion area",
        "minus random",
        "insertion area",
        "minus random",
        "CPU time, ms",
    )
    return [
        "",
        "## Faithfulness of the weights",
        "",
        "Faithful weights rank the features that the answer depends on first. The test removes features from the input,"
        " or adds them to an empty input, in the order of their weights. The deletion area is the area under the"
        " curve of the score over the fraction of removed features: smaller is better. The insertion area is the same"
        " for added features: larger is better. `fidelity` of the service is computed in the same way. The score is the"
        " probability of the answer; for a translation it is the mean probability of its tokens. `minus random` is the"
        " mean difference to a random order on the same examples. The CPU time is the median for one answer.",
        "",
        "![deletion and insertion areas of each method](interpretability-faithfulness.png)",
        *table(columns, rows),
        "",
        "The test removes features in the same way as occlusion, LIME and KernelSHAP. This gives these three methods"
        " an advantage over attention and gradients. No deletion or insertion test can avoid it.",
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
        "Fraction of examples for which two methods give the largest weight to the same feature:",
        *table(("model", *(" and ".join(NAMES[method] for method in pair) for pair in pairs)), tops),
        "",
        "Attention weights have no sign. This does not explain their low correlations with the other methods: computed"
        " with absolute weights, the mean rank correlations of attention are "
        + "; ".join(
            f"{name} {least_and_most(np.array(model['rank_correlation_of_sizes'])[0, 1:])}"
            for name, model in record["models"].items()
        )
        + ".",
        "",
        "LIME and KernelSHAP sample at random. The rank correlation of such a method with itself under another seed is"
        " the upper limit of its agreement with other methods:",
        *table(("model", "samples", "examples", "LIME", "KernelSHAP"), rows),
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
        "The baseline of every attention figure is uniform attention: the same weight for every token.",
        "",
        "![where the attention of each layer goes](interpretability-attention.png)",
        "",
        "![mean attention distance of each head](interpretability-distance.png)",
        "",
        f"- **sentiment** (MiniLM, fine-tuned): from the second layer on, the heads put"
        f" {100 * first_LH[1:].mean():.0f} % of their weight on [CLS] (uniform attention:"
        f" {100 * sentiment['even_shares'][0]:.0f} %). The classifier uses the mean of all token vectors, so [CLS] has"
        " no special role in the answer. BERT's heads attend to [CLS] when they find no relevant token (Clark et al."
        " 2019, arXiv 1906.04341). For this reason attention rollout is hardly informative for this model. The"
        " remaining weight is spread over many tokens, except in a few heads: the mean attention distance of layer"
        f" {near[0] + 1}, head {near[1] + 1} is {distance_LH.min():.1f} tokens (uniform:"
        f" {sentiment['even_distance']:.1f}).",
        "- **translation-en-de** attends to near tokens in early layers and to distant tokens in later layers: the mean"
        " attention distance in the encoder grows from"
        f" {np.array(translation['distance']).mean(axis=1)[0]:.1f} to"
        f" {np.array(translation['distance']).mean(axis=1)[-1]:.1f} tokens (uniform:"
        f" {translation['even_distance']:.1f})."
        f" Its most local head (layer {layer + 1}, head {head + 1}) has {100 * neighbours_LH.max():.0f} % of its"
        f" weight on the two neighbouring tokens (uniform: {100 * even_neighbours:.0f} %). This model has no [CLS]"
        " token, and the end-of-sentence token does not collect attention instead.",
        "- **cifar10-vit** attends to the whole image from its first layer on: the mean attention distances are"
        f" {image_distance_LH[0].min():.1f} to {image_distance_LH[0].max():.1f} pixels in layer 1 and"
        f" {image_distance_LH[-1].min():.1f} to {image_distance_LH[-1].max():.1f} in the last layer (uniform:"
        f" {image['even_distance']:.1f}). The eight neighbouring patches get {100 * around_L[0]:.0f} % in the first"
        f" layer and {100 * around_L[-1]:.0f} % in the last layer (uniform:"
        f" {100 * image['even_shares'][IMAGE_KINDS.index('around')]:.0f} %). This model has no local heads"
        " like those of large vision transformers (Dosovitskiy et al. 2021, figure 7), because the convolutions that"
        " compute its tokens already combine neighbouring pixels.",
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
        "For each target token, the reference is the source word whose removal lowers the token's probability most"
        " (occlusion). A head is aligned on a token if it attends most to this word.",
        "",
        "![alignment of each head with occlusion, and one sentence](interpretability-alignment.png)",
        "",
        f"The best head (layer {layer + 1}, head {head + 1}) is aligned on {100 * aligned_LH.max():.0f} % of the"
        f" tokens; the mean attention of all heads and layers is aligned on {100 * cross['aligned_mean_of_heads']:.0f}"
        f" %. The word at the same relative position is the reference word for {100 * cross['aligned_same_place']:.0f}"
        f" % of the tokens, and a random word for {100 * cross['aligned_by_chance']:.0f} %. The heads of layer 1 are"
        f" aligned on {100 * aligned_LH[0].mean():.0f} % of the tokens on average, those of layer 2 on"
        f" {100 * aligned_LH[1].mean():.0f} %. The mean distance of cross-attention from the diagonal is"
        f" {off_LH.mean():.2f} of the sentence length (uniform attention: {cross['even_off_the_diagonal']:.2f}), and"
        f" smallest in layer {straight[0] + 1}, head {straight[1] + 1} ({off_LH.min():.2f}). The end of the source"
        f" sentence gets {100 * to_end_LH.mean():.0f} % of the attention.",
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
        "Red words support the answer, and blue words oppose it. Colours are scaled to the largest weight of each line."
        " The number in brackets is the score of the answer.",
        "",
        "![sentences of our own, coloured by each method](interpretability-words.png)",
        "",
        f'Each of the three wrong answers depends on a single word: "{first}", "{second}" and "{third}" (KernelSHAP).'
        " The classifier follows this word although the sentence means the opposite of its answer. All methods except"
        ' attention show this. The translation marked "shortened" omits that the book is not yet read. The methods that'
        ' remove words (occlusion, LIME and KernelSHAP) give "not" and "yet" at most'
        f" {100 * weight_of_lost(record, ('occlusion', 'lime', 'shap')):.0f} % of the largest weight; attention gives"
        f" them up to {100 * weight_of_lost(record, ('attention',)):.0f} %.",
        "",
        "![pictures of our own under the weights of each method](interpretability-pictures.png)",
        "",
        f"CIFAR-10 has no class for a house: the classifier answers {article(house['answer'])}, with a low score of"
        f" {house['score']:.2f}. The pictures have 64 patches. With 256 samples the weights of LIME and KernelSHAP are"
        " mostly noise; with 2,048 samples they highlight the ship's hull, the truck's wheels and the airplane's"
        " fuselage.",
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


def how_measured(record: Record) -> list[str]:
    """Write the section on how the figures were measured."""
    models = record["models"]
    return [
        "",
        "## How the figures were measured",
        "",
        f"- `{record['command']}` measured the figures. It was run until it was finished, on {record['machine']},"
        f" at commit {', '.join(sorted({commit for model in models.values() for commit in model['commits']}))}."
        " Every figure is in [interpretability.json](interpretability.json).",
        "- Examples: "
        + "; ".join(
            f"{name} ({model['precision']}, version {model['version']}): {model['num_examples']} examples of"
            f" {model['data']}"
            for name, model in models.items()
        )
        + f". They were drawn by seed {record['seed']}. All sentences and pictures shown are this repository's own.",
        "- Intervals (±) are 95 % intervals. In the figure of rank correlations ± is the standard deviation over"
        " examples.",
        "- The features are those of the service: words, or an 8 x 8 grid of patches. Removed patches get the image's"
        " mean colour. The methods are those of `service/explanation/methods/`, with their defaults, on the committed"
        " graphs in one thread.",
        "- Attention is rolled out through the layers (Abnar and Zuidema 2020), with equal weights for the tokens of"
        " the last layer. For translations the study uses the mean attention to the source, combined with the encoder's"
        " rollout; the service omits the rollout. Gradients are integrated over 32 steps (Sundararajan et al. 2017; the"
        " service uses 64 or more) and summed over the tokens of a word.",
        "- Tests compare the methods with lime, shap, captum and PyTorch:"
        " `tests/service/explanation/methods/test_oracles.py` and"
        " `tests/export/conversion/test_explanation_oracles.py`.",
        "- The study has one model of each task, trained in this repository on short sentences and small images. Other"
        " models may differ. The sentiment model is served in int8, so its scores change a little with the other items"
        " of the batch. Its gradients are computed with the same weights in float32.",
    ]


def with_interval(measured: Record, digits: int = 3) -> str:
    """Format a mean and its interval."""
    return f"{measured['mean']:.{digits}f} ± {measured['half_width']:.{digits}f}"
