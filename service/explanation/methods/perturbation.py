"""Perturbation methods: occlusion, LIME and SHAP.

    plan ──> features that each sample keeps ──> model ──> values ──> estimate ──> a weight for each feature

All estimators are linear in the values. So where the model returns several values at once (a log probability for each
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
DEFAULT_SAMPLES = 256  # for methods that draw samples; with many features the default is larger
# Width of LIME's kernel on cosine distances between 0 and 1; the authors use 25 on distances up to 100.
KERNEL_WIDTH = 0.25
# Penalty of LIME's ridge regression, as a fraction of the samples' total weight: enough for a unique solution where
# features were always removed together, and too small to matter elsewhere.
RIDGE = 1e-5


class Plan(NamedTuple):
    """The samples of one explanation."""

    kept_SM: NDArray[np.bool_]
    weights_S: NDArray[np.float64]  # weight of each sample in the regression


def plan(method: Method, num_features: int, n_samples: int | None, seed: int) -> Plan:
    """Choose the samples to evaluate; deterministic in its arguments.

    Args:
        method: perturbation method.
        num_features: at least one.
        n_samples: maximum number of samples; None for the default.
        seed: seed of the random draws.

    Returns:
        the samples and their weights.

    Raises:
        InvalidRequest: `n_samples` is outside its limits, or too small for the method.
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
    samples: Plan,
    values_SK: NDArray[np.float64],
    whole_K: NDArray[np.float64],
    empty_K: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Estimate the weight of each feature for each value.

    Args:
        method: method of the plan.
        samples: samples that were evaluated.
        values_SK: values of the samples, float64 [S, K].
        whole_K: values with all features, float64 [K].
        empty_K: values without any feature, float64 [K].

    Returns:
        the weights, float64 [M, K].
    """
    if method == "occlusion":
        return whole_K - values_SK
    if method == "lime":
        return _weighted_ridge(samples, values_SK)
    return _shapley_values(samples, values_SK, whole_K, empty_K)


def _lime_samples(num_features: int, n_samples: int, draw: np.random.Generator) -> Plan:
    """Draw random subsets, weighted by their proximity to the full set (Ribeiro et al. 2016, arXiv 1602.04938).

    The first sample is the full set. As in the authors' code for texts, first the number of removed features is drawn,
    then which. Proximity is an exponential kernel on the cosine distance, which is 1 - sqrt(k / M) between all ones
    and a vector with k of M ones.
    """
    gone_S = draw.integers(1, num_features, n_samples, endpoint=True)
    gone_S[0] = 0
    kept_SM = ~_subsets(gone_S, num_features, draw)
    distance_S = 1 - np.sqrt(kept_SM.mean(axis=1))
    return Plan(kept_SM, np.sqrt(np.exp(-((distance_S / KERNEL_WIDTH) ** 2))))


def _subsets(sizes_S: NDArray[np.int64], num_features: int, draw: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a subset of each size, bool [S, M], uniformly: the features with the smallest random numbers."""
    numbers_SM = draw.random((len(sizes_S), num_features))
    ranks_SM = numbers_SM.argsort(axis=1).argsort(axis=1)
    return ranks_SM < sizes_S[:, None]


def _weighted_ridge(samples: Plan, values_SK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit a weighted ridge regression; the intercept is not penalised."""
    kept_SM, share_S = samples.kept_SM.astype(np.float64), samples.weights_S / samples.weights_S.sum()
    kept_SM -= share_S @ kept_SM
    values_SK = values_SK - share_S @ values_SK
    gram_MM = (kept_SM.T * share_S) @ kept_SM + RIDGE * np.eye(kept_SM.shape[1])
    return np.linalg.solve(gram_MM, (kept_SM.T * share_S) @ values_SK)


def _all_coalitions(num_features: int) -> Plan:
    """Return all subsets but the full and the empty one, weighted by the Shapley kernel.

    With these weights the regression gives the exact Shapley values (Lundberg & Lee 2017, arXiv 1705.07874, theorem
    2).
    """
    M = num_features
    subsets = [kept for kept in product((False, True), repeat=M) if 0 < sum(kept) < M]
    kept_SM = np.array(subsets, dtype=np.bool_).reshape(-1, M)
    weights = [(M - 1) / (math.comb(M, size) * size * (M - size)) for size in kept_SM.sum(axis=1).tolist()]
    return Plan(kept_SM, np.array(weights))


def _pairs(num_features: int, n_samples: int, draw: np.random.Generator) -> Plan:
    """Draw subsets by the Shapley kernel, each paired with its complement (Covert & Lee 2021, arXiv 2012.01536)."""
    sizes = np.arange(1, num_features)
    chances = 1 / (sizes * (num_features - sizes))
    half_SM = _subsets(draw.choice(sizes, n_samples // 2, p=chances / chances.sum()), num_features, draw)
    kept_SM = np.stack([half_SM, ~half_SM], axis=1).reshape(-1, num_features)
    return Plan(kept_SM, np.ones(len(kept_SM)))


def _shapley_values(
    samples: Plan, values_SK: NDArray[np.float64], whole_K: NDArray[np.float64], empty_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fit weights by least squares, constrained to sum to the difference between the full and the empty set.

    The constraint is the efficiency axiom. Every vector that satisfies it is an equal split of that difference plus a
    vector that sums to 0. Where the samples leave a choice, lstsq returns the solution of minimum norm.
    """
    M, difference_K = samples.kept_SM.shape[1], whole_K - empty_K
    equal_MK = np.tile(difference_K / M, (M, 1))
    if not len(samples.kept_SM):  # a single feature gets the whole difference
        return equal_MK
    kept_SM, root_S1 = samples.kept_SM.astype(np.float64), np.sqrt(samples.weights_S)[:, None]
    left_SK = values_SK - empty_K - kept_SM @ equal_MK
    sums_to_0_SM = kept_SM - kept_SM.mean(axis=1, keepdims=True)
    rest_MK, *_ = np.linalg.lstsq(root_S1 * sums_to_0_SM, root_S1 * left_SK, rcond=None)
    weights_MK: NDArray[np.float64] = equal_MK + rest_MK
    return weights_MK
