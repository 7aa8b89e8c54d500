"""Rows and steps that the graph that explains is compared by."""

from typing import Any

import pytest

from export.conversion.comparison import explanation
from export.conversion.comparison.explanation import at_alphas
from tests.export.conversion.test_explanation_graph import network_of, rows_of


def test_alphas_of_a_row_keep_its_input() -> None:
    """What changes is alpha alone."""
    row = rows_of(network_of("patches"), 1)[0]
    moved = at_alphas(row, [0.25, 0.75])
    assert [float(each.feeds["alpha"]) for each in moved] == [0.25, 0.75]
    assert float(row.feeds["alpha"]) == 1.0
    assert all(each.feeds["pixel_values"] is row.feeds["pixel_values"] for each in moved)


@pytest.mark.parametrize("steps", [explanation.midpoints, explanation.gauss_legendre])
def test_steps_weigh_one_together(steps: Any) -> None:
    """And integrate a line exactly."""
    alphas, weights = steps(7)
    assert weights.sum() == pytest.approx(1.0, abs=1e-6)
    assert float(alphas @ weights) == pytest.approx(0.5, abs=1e-6)
