"""The benchmark of predictions during explanations."""

import pytest

from load_tests.bench.explanation import (
    METHODS,
    MODELS,
    USERS,
    explanation_bars,
    measure_explanations,
    percentile,
    report_explanations,
    times_alone,
)
from load_tests.bench.report import spread
from tests.conftest import ROOT


@pytest.mark.slow
async def test_every_model_is_measured_with_and_without_explanations() -> None:
    """A short run against the committed models has every figure and a row for each."""
    told: list[str] = []
    rounds = await measure_explanations(ROOT / "model_store", 1, 20, told.append)
    assert told == ["explanations: round 1 of 1"]
    slices, costs = rounds[0]["requests_ms"], rounds[0]["cpu_ms"]
    assert set(slices) == {f"{model}, {users}, {how}" for model in MODELS for users in USERS for how in METHODS}
    for measured in slices.values():
        assert len(measured["alone"]) == len(measured["during"]) == 20
        assert min(measured["alone"] + measured["during"]) > 0
    assert {model: sorted(cost) for model, cost in costs.items()} == {model: ["after", "before"] for model in MODELS}
    assert all(value > 0 for cost in costs.values() for value in cost.values())
    assert len(explanation_bars(rounds)) == len(slices)
    lines = report_explanations(rounds, spread)
    assert sum(line.startswith("| sentiment, ") for line in lines) == len(USERS) * len(METHODS)
    assert sum(line.startswith("| sentiment |") for line in lines) == 1


def test_the_ratio_is_that_of_the_99th_percentiles() -> None:
    """The slowest of 100 requests decides, and the second slowest of 200."""
    alone = [2.0] * 100
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert times_alone({"alone": alone, "during": [5.0, *[2.0] * 99]}) == 2.5
    assert times_alone({"alone": alone, "during": [5.0, *[2.0] * 199]}) == 1.0
