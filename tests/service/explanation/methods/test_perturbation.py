"""Plans and estimators, on games with known weights: linear ones, and Shapley values by their definition."""

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.explanation.methods.perturbation import MAX_SAMPLES, METHODS, Method, estimate, plan

Game = Callable[[NDArray[np.bool_]], list[float]]


def weights_of(game: Game, M: int, method: Method, n_samples: int | None = None, seed: int = 0) -> NDArray[np.float64]:
    """Return the weights [M, K] of a game that is evaluated like a model."""
    made = plan(method, M, n_samples, seed)
    whole_K, empty_K = (np.array(game(np.full(M, kept))) for kept in (True, False))
    values_SK = np.array([game(kept_M) for kept_M in made.kept_SM]).reshape(-1, len(whole_K))
    return estimate(method, made, values_SK, whole_K, empty_K)


def linear_game(M: int) -> tuple[Game, NDArray[np.float64]]:
    """Return an additive game with two values, and the contributions of its features."""
    gives_MK = np.random.default_rng(1).normal(size=(M, 2))
    return (lambda kept_M: (0.3 + kept_M @ gives_MK).tolist()), gives_MK


def crowded_game(kept_M: NDArray[np.bool_]) -> list[float]:
    """Return the values of a game that is not additive: two features count only together, two hinder each other."""
    a, b, c, d, e = kept_M.tolist()
    return [math.tanh(0.2 + 2.0 * (a and b) + 0.7 * (c != d) - 1.1 * e + 0.4 * (a and e and not c))]


def shapley_by_definition(game: Game, M: int) -> NDArray[np.float64]:
    """Return Shapley values by definition: the mean contribution of each feature over all orders."""
    total_MK = np.zeros((M, len(game(np.zeros(M, dtype=bool)))))
    for order in permutations(range(M)):
        kept_M = np.zeros(M, dtype=bool)
        before = np.array(game(kept_M))
        for feature in order:
            kept_M[feature] = True
            after = np.array(game(kept_M))
            total_MK[feature] += after - before
            before = after
    return total_MK / math.factorial(M)


@pytest.mark.parametrize(
    ("method", "n_samples", "tolerance"),
    [("occlusion", None, 1e-12), ("lime", None, 5e-3), ("lime", 2000, 5e-3), ("shap", 64, 1e-9), ("shap", 512, 1e-9)],
)
@pytest.mark.parametrize("M", [1, 2, 5, 24])
def test_a_linear_game_gives_back_what_each_feature_gives(
    method: Method, n_samples: int | None, tolerance: float, M: int
) -> None:
    """Every method finds them, for one feature or many, drawn or enumerated; LIME's ridge shrinks them slightly."""
    game, gives_MK = linear_game(M)
    np.testing.assert_allclose(weights_of(game, M, method, n_samples), gives_MK, atol=tolerance, rtol=tolerance)


def test_all_coalitions_give_the_shapley_values() -> None:
    """The regression gives the values of the definition, feature by feature."""
    expected_MK = shapley_by_definition(crowded_game, 5)
    assert len(plan("shap", 5, 32, 0).kept_SM) == 30
    np.testing.assert_allclose(weights_of(crowded_game, 5, "shap", 32), expected_MK, atol=1e-9)
    assert np.abs(weights_of(crowded_game, 5, "occlusion") - expected_MK).max() > 0.1


def test_drawn_coalitions_come_near_the_shapley_values() -> None:
    """Checked on a game whose two halves are known by definition; more samples are closer, in the mean over seeds."""

    def doubled(kept_M: NDArray[np.bool_]) -> list[float]:
        return [crowded_game(kept_M[:5])[0] + 0.5 * crowded_game(kept_M[5:])[0]]

    half_MK = shapley_by_definition(crowded_game, 5)
    expected_MK = np.concatenate([half_MK, 0.5 * half_MK])
    errors = [
        np.mean([np.abs(weights_of(doubled, 10, "shap", count, seed) - expected_MK).max() for seed in range(20)])
        for count in (40, 600)
    ]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.05


@pytest.mark.parametrize("n_samples", [20, 100, 1024])
def test_shapley_weights_sum_to_what_they_explain(n_samples: int) -> None:
    """This holds for few samples too: the efficiency axiom is a constraint of the regression."""

    def game(kept_M: NDArray[np.bool_]) -> list[float]:
        return [crowded_game(kept_M[:5])[0] * (1 + kept_M[5:].sum())]

    whole, empty = (game(np.full(10, kept))[0] for kept in (True, False))
    assert weights_of(game, 10, "shap", n_samples).sum() == pytest.approx(whole - empty, abs=1e-12)


def test_drawn_coalitions_come_in_pairs() -> None:
    """Each sample is paired with its complement, none is full or empty, and their number is limited."""
    kept_SM = plan("shap", 12, 101, 3).kept_SM
    assert len(kept_SM) == 100
    np.testing.assert_array_equal(kept_SM[0::2], ~kept_SM[1::2])
    assert {0, 12}.isdisjoint(kept_SM.sum(axis=1).tolist())


def test_near_samples_count_more_for_lime() -> None:
    """The full input comes first with the largest weight; the empty one has the smallest."""
    made = plan("lime", 10, 500, 0)
    assert made.kept_SM[0].all()
    order = np.argsort(made.kept_SM.sum(axis=1), kind="stable")
    assert (np.diff(made.weights_S[order]) >= 0).all()
    assert made.weights_S[0] == 1.0
    assert made.weights_S.min() == pytest.approx(math.exp(-8))


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_is_the_same_for_the_same_seed(method: Method) -> None:
    """Another seed gives other samples, where anything is drawn."""
    first, again, other = (plan(method, 20, 100, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.kept_SM, again.kept_SM)
    np.testing.assert_array_equal(first.weights_S, again.weights_S)
    assert np.array_equal(first.kept_SM, other.kept_SM) is (method == "occlusion")
    assert len(first.kept_SM) <= 100


@pytest.mark.parametrize(
    ("method", "num_features", "n_samples", "expected"),
    [
        ("occlusion", 5, 0, "n_samples must lie between 1 and 4096, not 0"),
        ("lime", 5, MAX_SAMPLES + 1, "n_samples must lie between 1 and 4096, not 4097"),
        ("occlusion", 5, 4, "n_samples is 4, occlusion of 5 features takes at least 5"),
        ("shap", 50, 99, "n_samples is 99, shap of 50 features takes at least 100"),
        ("occlusion", 5000, None, "occlusion of 5000 features takes 5000 samples, the limit is 4096"),
        ("shap", 2049, None, "shap of 2049 features takes 4098 samples, the limit is 4096"),
    ],
)
def test_too_few_and_too_many_samples_are_refused(
    method: Method, num_features: int, n_samples: int | None, expected: str
) -> None:
    """The message names the limit."""
    with pytest.raises(InvalidRequest, match=expected):
        plan(method, num_features, n_samples, 0)
