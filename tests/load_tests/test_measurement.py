"""Figures of a run are computed from its records."""

import pytest

from load_tests.measurement import NOT_STARTED, Record, Window, by_protocol, figures, knee, percentile_ms, quality
from load_tests.model_tasks import TextClassification
from load_tests.processes import CpuReading


def record(
    ended_s: float, *, due_s: float = 0.0, error: str = "", rows: int | None = 1, expected: str | None = "A"
) -> Record:
    """Make a request of phase "p"."""
    return Record(
        "p", "m", "HTTP" if rows else "gRPC", due_s, due_s, ended_s, error, rows, "" if error else "A", expected
    )


def reading(at_s: float) -> CpuReading:
    """Make a CPU reading of an idle machine."""
    return CpuReading(at_s=at_s, load_s=0.0, server_s=None, busy_s=0.0, idle_s=0.0, steal_s=0.0)


def test_percentiles_are_measured_values() -> None:
    """The nearest rank is used, without interpolation."""
    ordered_s = [number / 1000 for number in range(1, 201)]
    assert [percentile_ms(ordered_s, share) for share in (0, 50, 95, 99, 100)] == [1, 100, 190, 198, 200]
    assert percentile_ms([], 50) is None


def test_latency_counts_from_the_due_time() -> None:
    """The wait before sending is part of the latency."""
    late = Record("p", "m", "HTTP", 1.0, 3.0, 3.5, "", None, "A", "A")
    assert figures([late], 1.0)["p50_ms"] == 2500


def test_figures_separate_answers_from_failures() -> None:
    """Latency and throughput count answers only; a request that was never started counts as refused."""
    seen = figures([record(1.0), record(2.0, rows=2), record(2.0, rows=2), record(0.0, error=NOT_STARTED)], 2.0)
    assert (seen["requests"], seen["answered"], seen["failures"], seen["refused_share"]) == (4, 3, 1, 0.25)
    assert (seen["requests_per_s"], seen["p50_ms"], seen["p99_ms"]) == (1.5, 2000, 2000)
    assert seen["errors"] == {f"HTTP {NOT_STARTED}": 1}
    assert seen["batch_rows"] == {1: 1, 2: 2}
    assert seen["mean_batch_rows"] == pytest.approx(1.5)  # a batch of two counts once


def test_unknown_figures_are_none() -> None:
    """Examples are a run without requests and a target that does not report batches."""
    nothing = figures([], 1.0)
    assert (nothing["p50_ms"], nothing["refused_share"], nothing["batch_rows"]) == (None, 0.0, None)
    assert figures([record(1.0, rows=None)], 1.0)["mean_batch_rows"] is None


def test_users_are_measured_in_the_window_and_arrivals_as_a_whole() -> None:
    """Requests of users while they settle do not count; late answers to arrivals do."""
    records = [record(0.5), record(1.5), record(2.5), record(1.5)._replace(phase="other")]
    assert Window("p", "users", 2, reading(1.0), reading(2.0)).of(records) == records[1:2]
    assert Window("p", "arrivals", None, reading(1.0), reading(2.0)).of(records) == records[:3]


def test_only_answers_with_a_label_are_judged() -> None:
    """Failed requests are not judged either."""
    records = [record(1.0), record(1.0, expected="B"), record(1.0, expected=None), record(1.0, error="status 503")]
    assert quality(records, TextClassification()) == {"answers_checked": 2, "quality": {"accuracy": 0.5}}
    assert quality(records[2:], TextClassification()) == {"answers_checked": 0, "quality": {}}


def test_each_protocol_has_its_figures() -> None:
    """Protocols that were not used are left out."""
    seen = by_protocol([record(1.0), record(1.0, rows=None), record(1.0, rows=None)], 1.0)
    assert {name: entry["requests"] for name, entry in seen.items()} == {"HTTP": 1, "gRPC": 2}


@pytest.mark.parametrize(
    ("steps", "users", "reached"),
    [
        ([(1, 50.0, 1.0), (2, 95.0, 2.0), (4, 100.0, 9.0)], 2, True),
        ([(1, 50.0, 1.0), (2, 80.0, 2.0), (4, 100.0, 3.0)], 4, False),
        ([(1, 100.0, 1.0), (2, 60.0, None)], 1, True),
    ],
)
def test_the_knee_is_where_more_users_hardly_raise_throughput(
    steps: list[tuple[int, float, float | None]], users: int, reached: bool
) -> None:
    """It is the fewest users with 90 % of the highest throughput; the report says whether more users were tried."""
    found = knee(steps)
    assert found
    assert (found["users"], found["reached"], found["highest_requests_per_s"]) == (users, reached, 100.0)
    assert knee([]) is None
