"""Rows and integration steps for comparing the graph that explains."""

from typing import Any

import pytest

from export.conversion.comparison import explanation
from export.conversion.comparison.explanation import at_alphas
from tests.export.conversion.test_explanation_graph import network_of, rows_of


def test_copies_of_a_row_differ_only_in_alpha() -> None:
    """All other inputs stay the same arrays."""
    row = rows_of(network_of("patches"), 1)[0]
    moved = at_alphas(row, [0.25, 0.75])
    assert [float(each.feeds["alpha"]) for each in moved] == [0.25, 0.75]
    assert float(row.feeds["alpha"]) == 1.0
    assert all(each.feeds["pixel_values"] is row.feeds["pixel_values"] for each in moved)


@pytest.mark.parametrize("steps", [explanation.midpoints, explanation.gauss_legendre])
def test_integration_weights_sum_to_one(steps: Any) -> None:
    """They also integrate a line exactly."""
    alphas, weights = steps(7)
    assert weights.sum() == pytest.approx(1.0, abs=1e-6)
    assert float(alphas @ weights) == pytest.approx(0.5, abs=1e-6)
