"""Figures of one explained answer: agreement of the methods, their faithfulness, and patterns of attention.

Shapes: M features, K values of an answer, L layers, H heads, T tokens, S source tokens, N methods.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.studies import attention_patterns as patterns
from export.studies.explained_answers import Answer, TranslationAnswer
from service.explanation.methods.fidelity import area, curves
from service.explanation.methods.perturbation import METHODS as PERTURBATIONS
from service.explanation.methods.perturbation import Method

Floats = NDArray[np.float64]
Figures = dict[str, Any]
METHODS = ("attention", "gradients", *PERTURBATIONS)
DRAWN: tuple[Method, ...] = ("lime", "shap")
RANDOM = "random"  # a random order, to compare the methods with
SEED = 1
GRID_SIDE, PIXELS_BETWEEN = 8, 4.0  # tokens per side of the image model's grid, and pixels between them


def weights_of(answer: Answer, seed: int) -> tuple[dict[str, Floats], dict[str, float]]:
    """Compute the weights [M] by each method, and each method's CPU time in seconds."""
    weights, cpu_s = {}, {}
    for method in METHODS:
        answer.known.clear()  # cached answers of another method would make this one look cheap
        start_s = time.process_time()
        weights[method] = weights_by(answer, method, seed)
        cpu_s[method] = time.process_time() - start_s
    return weights, cpu_s


def weights_by(answer: Answer, method: str, seed: int) -> Floats:
    """Compute the weights by one method; [M]."""
    if method == "attention":
        return answer.of_features(answer.attention_of_tokens(answer.outputs()))
    if method == "gradients":
        return answer.gradients()
    weights_M: Floats = answer.by_perturbation(next(name for name in PERTURBATIONS if name == method), seed).sum(axis=1)
    return weights_M


def figures_of(answer: Answer, place: int) -> Figures:
    """Compute how far the methods agree on an answer, and how faithful each one is."""
    seed = seed_of(place)
    weights, cpu_s = weights_of(answer, seed)
    stacked_NM = np.stack([weights[method] for method in METHODS])
    top_N = stacked_NM.argmax(axis=1)
    orders = weights | {RANDOM: np.random.default_rng(seed).normal(size=answer.num_features)}
    return {
        "features": answer.num_features,
        "scores": [answer.score_of(values_K) for values_K in answer.whole_and_empty()],
        "rank_correlation": rank_correlations(stacked_NM),
        "rank_correlation_of_sizes": rank_correlations(np.abs(stacked_NM)),
        "same_top": (top_N[:, None] == top_N[None]).astype(np.float64),
        "areas": {name: areas_of(answer, order_M) for name, order_M in orders.items()},
        "cpu_s": cpu_s,
    }


def agreement_of_seeds(answer: Answer, place: int, n_samples: int | None) -> dict[str, float]:
    """Compute the rank correlation of a sampling method's weights between two seeds."""
    seeds = seed_of(place), seed_of(place) + 500_000
    found: dict[str, float] = {}
    for method in DRAWN:
        weights = [answer.by_perturbation(method, seed, n_samples).sum(axis=1) for seed in seeds]
        found[method] = float(rank_correlations(np.stack(weights))[0, 1])
    return found


def seed_of(place: int) -> int:
    """Return the seed of an example's random numbers."""
    return 1_000_000 * SEED + place


def areas_of(answer: Answer, weights_M: Floats) -> list[float]:
    """Compute the deletion and insertion areas, as the service does."""
    return [
        area(kept_SM, [answer.score_of(values_K) for values_K in answer.values(kept_SM)])
        for kept_SM in curves(weights_M)
    ]


def rank_correlations(weights_NM: Floats) -> Floats:
    """Compute Spearman's rank correlation of each pair of rows, [N, N]; constant rows get 0."""
    from scipy.stats import rankdata

    ranks_NM = rankdata(weights_NM, axis=1)
    ranks_NM -= ranks_NM.mean(axis=1, keepdims=True)
    lengths_N1 = np.linalg.norm(ranks_NM, axis=1, keepdims=True)
    ranks_NM /= np.where(lengths_N1 > 0, lengths_N1, 1)
    return np.asarray(ranks_NM @ ranks_NM.T)


def is_mark(answer: Any) -> list[bool]:
    """Tell for each token whether it is punctuation."""
    texts = [answer.given[slice(*span)].strip() if span else "" for span in answer.spans]
    return [bool(text) and not any(character.isalnum() for character in text) for text in texts]


def _self_attention(
    attention_LHTT: NDArray[np.float32], kind_TT: Any, kinds: Sequence[str], distance_TT: Floats
) -> Figures:
    """Compute the figures of each head, [L, H], and those of even attention."""
    even = patterns.even(attention_LHTT)
    return {
        "entropy": patterns.entropy(attention_LHTT),
        "distance": patterns.mean_distance(attention_LHTT, distance_TT),
        "even_distance": float(patterns.mean_distance(even, distance_TT)[0, 0]),
        "shares": patterns.shares(attention_LHTT, kind_TT, len(kinds)),
        "even_shares": patterns.shares(even, kind_TT, len(kinds))[0, 0],
    }


def patterns_of_text(answer: Any, outputs: dict[str, NDArray[np.float32]]) -> Figures:
    """Compute figures of a text classifier's attention."""
    kind_TT = patterns.kinds_of_text(is_mark(answer), has_first=True)
    distance_TT = patterns.distance_in_text(len(kind_TT))
    return {"self": _self_attention(outputs["attention"], kind_TT, patterns.TEXT_KINDS, distance_TT)}


def patterns_of_image(answer: Any, outputs: dict[str, NDArray[np.float32]]) -> Figures:
    """Compute figures of an image classifier's attention."""
    kind_TT = patterns.kinds_of_image(GRID_SIDE)
    distance_TT = patterns.distance_in_image(GRID_SIDE, PIXELS_BETWEEN)
    return {"self": _self_attention(outputs["attention"], kind_TT, patterns.IMAGE_KINDS, distance_TT)}


def patterns_of_translation(answer: Any, outputs: dict[str, NDArray[np.float32]]) -> Figures:
    """Compute figures of a translation model's encoder self-attention and cross-attention."""
    kind_SS = patterns.kinds_of_text(is_mark(answer), has_first=False)
    distance_SS = patterns.distance_in_text(len(kind_SS))
    cross_LHTS = outputs["cross_attention"]
    T = cross_LHTS.shape[2]
    kind_TS = patterns.kinds_of_source(is_mark(answer), T)
    off_TS, even = patterns.off_the_diagonal(T, len(kind_SS)), patterns.even(cross_LHTS)
    return {
        "self": _self_attention(outputs["encoder_attention"], kind_SS, patterns.TEXT_KINDS, distance_SS),
        "cross": {
            "entropy": patterns.entropy(cross_LHTS),
            "off_the_diagonal": patterns.mean_distance(cross_LHTS, off_TS),
            "even_off_the_diagonal": float(patterns.mean_distance(even, off_TS)[0, 0]),
            "shares": patterns.shares(cross_LHTS, kind_TS, len(patterns.SOURCE_KINDS)),
            "even_shares": patterns.shares(even, kind_TS, len(patterns.SOURCE_KINDS))[0, 0],
            **alignment(answer, cross_LHTS),
        },
    }


def alignment(answer: TranslationAnswer, cross_LHTS: NDArray[np.float32]) -> Figures:
    """Measure how often attention is highest at the word whose removal costs a target token most.

    Occlusion is the reference, token by token. The heads are compared with their mean, with the word at the same
    relative place, and with chance. The end of the sentence is left out on both sides.
    """
    influence_MK = answer.by_perturbation("occlusion", SEED)
    K = len(answer.pieces) - answer.ends
    judged_K = influence_MK.argmax(axis=0)[:K]
    to_words_LHKM = to_words(answer, cross_LHTS)[:, :, :K]
    words = answer.feature_of_T[answer.feature_of_T >= 0]
    place_K = np.rint(np.linspace(0, len(words) - 1, K)).astype(int)
    return {
        "aligned": (to_words_LHKM.argmax(axis=-1) == judged_K).mean(axis=-1),
        "aligned_mean_of_heads": float((to_words_LHKM.mean(axis=(0, 1)).argmax(axis=-1) == judged_K).mean()),
        "aligned_same_place": float((words[place_K] == judged_K).mean()),
        "aligned_by_chance": 1 / answer.num_features,
    }


def to_words(answer: TranslationAnswer, cross_LHTS: NDArray[np.float32]) -> Floats:
    """Sum cross-attention over the tokens of each source word; [L, H, T, M]."""
    found = np.zeros((*cross_LHTS.shape[:3], answer.num_features))
    for token, feature in enumerate(answer.feature_of_T.tolist()):
        if feature >= 0:
            found[..., feature] += cross_LHTS[..., token]
    return found
