"""Intervals beside published figures and a formula."""

import json
import math

import numpy as np
import pytest

from export.training.measures.intervals import bootstrap_intervals, json_able, wilson_interval


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_published_cases(successes: int, total: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_of_nothing_is_refused() -> None:
    """There is no fraction."""
    with pytest.raises(ValueError, match="at least one example"):
        wilson_interval(0, 0)


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    """Of 400 values it is the mean plus and minus 1.96 standard errors, within the resampling's own error."""
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap_intervals(lambda rows: {"mean": values[rows].mean()}, 400)["mean"]
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert bootstrap_intervals(lambda rows: {"mean": values[rows].mean()}, 400)["mean"] == (low, high)
    assert bootstrap_intervals(lambda rows: {"mean": values[rows].mean()}, 400, seed=1)["mean"] != (low, high)


def test_measures_that_few_resamples_define_have_no_interval() -> None:
    """One undefined resample in a while is left out."""
    seldom = bootstrap_intervals(lambda rows: {"a": 1.0 if 0 in rows else math.nan, "b": math.nan}, 3)
    assert seldom["a"] == (1.0, 1.0)
    assert all(math.isnan(end) for end in seldom["b"])


def test_json_has_no_nan() -> None:
    """NaN is not JSON; None is."""
    made = json_able({"a": math.nan, "b": (1.0, math.inf), "c": [{"d": math.nan}]})
    assert json.dumps(made, allow_nan=False) == '{"a": null, "b": [1.0, null], "c": [{"d": null}]}'
