"""The cost table: what was measured, what lies between, and how it learns."""

import numpy as np
import pytest

from service.scheduling.cost_table import CostTable


def line(rows: int, length: int) -> float:
    """An engine with a fixed cost and one for each token."""
    return 1e-3 + 1e-5 * rows * length


def test_a_linear_engine_is_known_from_a_few_calls() -> None:
    """Between the measured sizes and beyond them."""
    table = CostTable(
        64, 512, [(rows, length, line(rows, length)) for rows, length in ((1, 8), (1, 64), (8, 32), (16, 64))]
    )
    for rows, length in ((1, 20), (3, 100), (32, 256), (64, 512), (100, 600)):
        assert table.estimate(rows, length) == pytest.approx(line(rows, length), rel=0.05)


def test_nothing_measured_costs_nothing() -> None:
    """An empty table must not refuse anybody; the second call starts it, for the first one is always slow."""
    table = CostTable(64, 512)
    assert table.estimate(64, 512) == 0.0
    table.record(4, 32, 0.3)
    assert table.estimate(4, 32) == 0.0
    table.record(4, 32, 0.01)
    assert table.estimate(4, 32) == pytest.approx(0.01, rel=0.01)


def test_it_follows_the_engine_and_shrugs_off_a_disturbed_call() -> None:
    """One call that took a hundred times as long hardly counts; a change that lasts is believed."""
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
    """The machine becomes twice as fast under single requests: batches are expected to have gained most of that too."""
    table = CostTable(
        64, 512, [(rows, length, line(rows, length)) for rows, length in ((1, 8), (1, 64), (8, 32), (16, 64))]
    )
    before = table.estimate(16, 64)
    for _ in range(500):
        table.record(1, 32, line(1, 32) / 2)
    assert table.estimate(1, 32) == pytest.approx(line(1, 32) / 2, rel=0.05)
    assert table.estimate(16, 64) < 0.8 * before


def test_more_rows_than_were_measured_are_not_expected_to_cost_less_each() -> None:
    """A line through small calls promises it; where caches end, large ones cost more."""
    table = CostTable(64, 64, [(rows, 32, 1e-3 + 1e-4 * rows) for rows in (1, 4, 8, 16)])
    for rows in (32, 64):
        assert table.estimate(rows, 32) / rows == pytest.approx(table.estimate(16, 32) / 16)


def test_a_call_of_no_time_does_no_harm() -> None:
    """A clock may say zero."""
    table = CostTable(4, 2)
    for _ in range(3):
        table.record(1, 1, 0.0)
    assert table.estimate(1, 1) > 0.0


def test_noise_beyond_the_grid_does_no_harm() -> None:
    """Rows longer than any that was foreseen: their estimates stay near the truth, and above all above zero."""
    rng = np.random.default_rng(1)
    table = CostTable(64, 1024)
    for _ in range(500):
        rows, length = int(rng.integers(1, 9)), int(rng.integers(600, 12_288))
        table.record(rows, length, 1e-6 * rows * length * rng.normal(1.0, 0.15))
    for rows, length in ((2, 1024), (1, 2000), (4, 4096), (8, 12_288)):
        assert table.estimate(rows, length) == pytest.approx(1e-6 * rows * length, rel=0.3)
