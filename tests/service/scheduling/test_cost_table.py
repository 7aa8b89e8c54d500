"""The cost table: measured calls, interpolation between them, and how it adapts."""

import numpy as np
import pytest

from service.scheduling.cost_table import CostTable


def line(rows: int, length: int) -> float:
    """Make the costs of an engine with a fixed cost and a cost per token."""
    return 1e-3 + 1e-5 * rows * length


def test_a_linear_engine_is_known_from_a_few_calls() -> None:
    """Estimates are right between the measured sizes and beyond them."""
    table = CostTable(
        64, 512, [(rows, length, line(rows, length)) for rows, length in ((1, 8), (1, 64), (8, 32), (16, 64))]
    )
    for rows, length in ((1, 20), (3, 100), (32, 256), (64, 512), (100, 600)):
        assert table.estimate(rows, length) == pytest.approx(line(rows, length), rel=0.05)


def test_an_empty_table_estimates_zero() -> None:
    """It must not refuse requests; the second call starts the table, because the first is always slow."""
    table = CostTable(64, 512)
    assert table.estimate(64, 512) == 0.0
    table.record(4, 32, 0.3)
    assert table.estimate(4, 32) == 0.0
    table.record(4, 32, 0.01)
    assert table.estimate(4, 32) == pytest.approx(0.01, rel=0.01)


def test_the_table_adapts_and_ignores_an_outlier() -> None:
    """A single call of 100 times the cost hardly counts; a lasting change is learnt."""
    table = CostTable(64, 512, [(8, 32, 0.01)])
    table.record(8, 32, 1.0)
    assert table.estimate(8, 32) < 0.012
    for _ in range(200):
        table.record(8, 32, 0.005)
    assert table.estimate(8, 32) == pytest.approx(0.005, rel=0.05)
    for _ in range(200):
        table.record(8, 32, 0.02)
    assert table.estimate(8, 32) == pytest.approx(0.02, rel=0.05)


def test_sizes_stay_comparable_while_only_one_of_them_is_used() -> None:
    """If single requests become twice as fast, batches are expected to be faster too."""
    table = CostTable(
        64, 512, [(rows, length, line(rows, length)) for rows, length in ((1, 8), (1, 64), (8, 32), (16, 64))]
    )
    before = table.estimate(16, 64)
    for _ in range(500):
        table.record(1, 32, line(1, 32) / 2)
    assert table.estimate(1, 32) == pytest.approx(line(1, 32) / 2, rel=0.05)
    assert table.estimate(16, 64) < 0.8 * before


def test_larger_batches_are_not_expected_to_cost_less_per_row() -> None:
    """A line through small calls promises it, but beyond the caches calls cost more."""
    table = CostTable(64, 64, [(rows, 32, 1e-3 + 1e-4 * rows) for rows in (1, 4, 8, 16)])
    for rows in (32, 64):
        assert table.estimate(rows, 32) / rows == pytest.approx(table.estimate(16, 32) / 16)


def test_a_measurement_of_zero_is_accepted() -> None:
    """A clock may return the same time twice."""
    table = CostTable(4, 2)
    for _ in range(3):
        table.record(1, 1, 0.0)
    assert table.estimate(1, 1) > 0.0


def test_noise_beyond_the_grid_keeps_estimates_positive() -> None:
    """Estimates for rows longer than the grid stay near the truth."""
    rng = np.random.default_rng(1)
    table = CostTable(64, 1024)
    for _ in range(500):
        rows, length = int(rng.integers(1, 9)), int(rng.integers(600, 12_288))
        table.record(rows, length, 1e-6 * rows * length * rng.normal(1.0, 0.15))
    for rows, length in ((2, 1024), (1, 2000), (4, 4096), (8, 12_288)):
        assert table.estimate(rows, length) == pytest.approx(1e-6 * rows * length, rel=0.3)
