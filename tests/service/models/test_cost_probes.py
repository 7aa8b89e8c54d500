"""The cost of padding is measured correctly with a simulated clock."""

import pytest

from service.models.cost_probes import measure_padding_cost


@pytest.mark.parametrize(("truth", "expected"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (7.0, 1.0), (-0.2, 0.0)])
def test_the_cost_of_skipped_padding_is_measured(truth: float, expected: float) -> None:
    """It is relative to a real token, from calls with and without padding; disturbed calls do not count."""
    now_s, disturbances = 0.0, iter([0.5, 0.0, 0.0, 2.0, 0.0, 0.0])

    def run(lengths: list[int]) -> list[int]:
        nonlocal now_s
        padding = len(lengths) * max(lengths) - sum(lengths)
        now_s += 1e-4 * (sum(lengths) + truth * padding) + next(disturbances)
        return lengths

    found = measure_padding_cost(run, lambda length: length, 512, lambda: now_s)
    assert found == pytest.approx(expected)


def test_a_model_too_short_for_the_padded_probe_is_not_probed() -> None:
    """It does not accept the probe's longest row."""
    assert measure_padding_cost(lambda items: pytest.fail("asked"), lambda length: length, 25, lambda: 0.0) == 0.0
