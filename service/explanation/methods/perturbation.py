"""Which parts are taken away together, and what the model's answers to that say of each part.

    plan ──> which features each sample keeps ──> the model ──> values ──> estimate ──> a weight for each feature

All estimators are linear in the values. So where the model gives several values at once (a log probability for each
token of a translation), the weights of the sum are the sums of the weights.

Shapes: S samples, M features, K values of one answer.
"""

import math
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest

Method = Literal["occlusion", "lime", "shap"]
METHODS: tuple[Method, ...] = ("occlusion", "lime", "shap")
MAX_SAMPLES = 4096
DEFAULT_SAMPLES = 256  # of methods that draw; more where there are so many features that this would say little
# The width of LIME's kernel on cosine distances between 0 and 1; its authors' 25, of distances that they count to 100.
KERNEL_WIDTH = 0.25
# Of LIME's ridge regression, as a share of the samples' total weight: enough to have one answer where features were
# always taken away together, and too little to be seen elsewhere.
RIDGE = 1e-5


class Plan(NamedTuple):
    """The samples of one explanation."""

    kept_SM: NDArray[np.bool_]
    weights_S: NDArray[np.float64]  # how much each counts


def plan(method: Method, num_features: int, n_samples: int | None, seed: int) -> Plan:
    """What to ask the model; the same for the same arguments.

    Args:
        method: how features are taken away.
        num_features: at least one.
        n_samples: at most so many samples; None for as many as are enough by default.
        seed: of what is drawn.

    Raises:
        InvalidRequest: `n_samples` lies outside its limits, or is too few for the method.
    """
    if n_samples is not None and not 1 <= n_samples <= MAX_SAMPLES:
        raise InvalidRequest(f"n_samples must lie between 1 and {MAX_SAMPLES}, not {n_samples}")
    least = {"occlusion": num_features, "lime": 1, "shap": 2 * num_features}[method]
    if n_samples is None:
        n_samples = num_features if method == "occlusion" else max(DEFAULT_SAMPLES, 2 * num_features)
    if method == "shap" and 2**num_features <= n_samples:
        return _all_coalitions(num_features)
    if n_samples < least:
        raise InvalidRequest(f"n_samples is {n_samples}, {method} of {num_features} features takes at least {least}")
    if n_samples > MAX_SAMPLES:
        raise InvalidRequest(
            f"{method} of {num_features} features takes {n_samples} samples, the limit is {MAX_SAMPLES}"
        )
    if method == "occlusion":
        return Plan(~np.eye(num_features, dtype=np.bool_), np.ones(num_features))
    draw = np.random.default_rng(seed)
    if method == "lime":
        return _lime_samples(num_features, n_samples, draw)
    return _pairs(num_features, n_samples, draw)


def estimate(
    method: Method,
    made: Plan,
    values_SK: NDArray[np.float64],
    whole_K: NDArray[np.float64],
    empty_K: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The weight of each feature for each value, [M, K].

    Args:
        method: that of the plan.
        made: what was asked.
        values_SK: what the model said to it.
        whole_K: what it says with all features.
        empty_K: what it says without any.
    """
    if method == "occlusion":
        return whole_K - values_SK
    if method == "lime":
        return _weighted_ridge(made, values_SK)
    return _shapley_values(made, values_SK, whole_K, empty_K)


def _lime_samples(num_features: int, n_samples: int, draw: np.random.Generator) -> Plan:
    """Random subsets, the first of them whole, each by its nearness to that (Ribeiro et al. 2016, arXiv 1602.04938).

    As in the authors' code for texts, first how many features go is drawn, then which. Nearness is an exponential
    kernel on the cosine distance; between all ones and a vector with k of M ones that is 1 - sqrt(k / M).
    """
    gone_S = draw.integers(1, num_features, n_samples, endpoint=True)
    gone_S[0] = 0
    kept_SM = ~_subsets(gone_S, num_features, draw)
    distance_S = 1 - np.sqrt(kept_SM.mean(axis=1))
    return Plan(kept_SM, np.sqrt(np.exp(-((distance_S / KERNEL_WIDTH) ** 2))))


def _subsets(sizes_S: NDArray[np.int64], num_features: int, draw: np.random.Generator) -> NDArray[np.bool_]:
    """A subset of each size, [S, M], all of that size as likely: those that got the smallest numbers."""
    numbers_SM = draw.random((len(sizes_S), num_features))
    ranks_SM = numbers_SM.argsort(axis=1).argsort(axis=1)
    return ranks_SM < sizes_S[:, None]


def _weighted_ridge(made: Plan, values_SK: NDArray[np.float64]) -> NDArray[np.float64]:
    """The straight line through the samples; its constant is not drawn towards 0."""
    kept_SM, share_S = made.kept_SM.astype(np.float64), made.weights_S / made.weights_S.sum()
    kept_SM -= share_S @ kept_SM
    values_SK = values_SK - share_S @ values_SK
    gram_MM = (kept_SM.T * share_S) @ kept_SM + RIDGE * np.eye(kept_SM.shape[1])
    return np.linalg.solve(gram_MM, (kept_SM.T * share_S) @ values_SK)


def _all_coalitions(num_features: int) -> Plan:
    """Every subset but the whole and the empty one, by the Shapley kernel (Lundberg & Lee 2017, arXiv 1705.07874).

    With these weights the regression gives the Shapley values themselves (theorem 2).
    """
    M = num_features
    subsets = [kept for kept in product((False, True), repeat=M) if 0 < sum(kept) < M]
    kept_SM = np.array(subsets, dtype=np.bool_).reshape(-1, M)
    weights = [(M - 1) / (math.comb(M, size) * size * (M - size)) for size in kept_SM.sum(axis=1).tolist()]
    return Plan(kept_SM, np.array(weights))


def _pairs(num_features: int, n_samples: int, draw: np.random.Generator) -> Plan:
    """Subsets drawn by the Shapley kernel, each with what it leaves out (Covert & Lee 2021, arXiv 2012.01536)."""
    sizes = np.arange(1, num_features)
    chances = 1 / (sizes * (num_features - sizes))
    half_SM = _subsets(draw.choice(sizes, n_samples // 2, p=chances / chances.sum()), num_features, draw)
    kept_SM = np.stack([half_SM, ~half_SM], axis=1).reshape(-1, num_features)
    return Plan(kept_SM, np.ones(len(kept_SM)))


def _shapley_values(
    made: Plan, values_SK: NDArray[np.float64], whole_K: NDArray[np.float64], empty_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights that fit the samples best among those whose sum is the whole's value less the empty one's.

    The constraint is the efficiency axiom. All weights that keep to it are equal shares of that difference and a
    vector that sums to 0; among the best of these, lstsq gives the shortest where the samples leave a choice.
    """
    M, difference_K = made.kept_SM.shape[1], whole_K - empty_K
    equal_MK = np.tile(difference_K / M, (M, 1))
    if not len(made.kept_SM):  # a single feature has it all
        return equal_MK
    kept_SM, root_S1 = made.kept_SM.astype(np.float64), np.sqrt(made.weights_S)[:, None]
    left_SK = values_SK - empty_K - kept_SM @ equal_MK
    sums_to_0_SM = kept_SM - kept_SM.mean(axis=1, keepdims=True)
    rest_MK, *_ = np.linalg.lstsq(root_S1 * sums_to_0_SM, root_S1 * left_SK, rcond=None)
    weights_MK: NDArray[np.float64] = equal_MK + rest_MK
    return weights_MK
