"""Figures are judged by limits."""

from typing import Any

import pytest

from load_tests.judging import judge, missed
from load_tests.slo import Limits

REPORT: dict[str, Any] = {
    "sent": "x",
    "answered": 9,
    "p95_ms": 20.0,
    "p99_ms": 30.0,
    "refused_share": 0.1,
    "requests_per_s": 50.0,
    "quality": {"accuracy": 0.9},
}


def limits(**values: float) -> Limits:
    """Make limits of a text classifier."""
    return Limits(task="text-classification", **values)


def test_a_limit_includes_its_own_value() -> None:
    """This holds for max_* and min_* limits."""
    kept = limits(max_p95_ms=20, max_p99_ms=31, max_refused_share=0.1, min_requests_per_s=50, min_accuracy=0.9)
    assert [each.kept for each in judge(REPORT, kept, "m")] == [True] * 5
    broken = limits(max_p95_ms=19.9, max_p99_ms=29, max_refused_share=0, min_requests_per_s=50.1, min_accuracy=0.91)
    verdicts = judge(REPORT, broken, "m")
    assert missed(verdicts) == [
        f"{name} of m"
        for name in ("max_p95_ms", "max_p99_ms", "max_refused_share", "min_requests_per_s", "min_accuracy")
    ]


def test_a_missing_measurement_fails_its_limit() -> None:
    """Without answers there is neither latency nor quality."""
    nothing = REPORT | {"answered": 0, "p95_ms": None, "quality": {}}
    assert missed(judge(nothing, limits(max_p95_ms=1e9, min_accuracy=0.0), "m")) == [
        "max_p95_ms of m",
        "min_accuracy of m",
    ]


def test_answers_without_labels_are_not_judged() -> None:
    """The verdict says that the right answers are unknown."""
    (verdict,) = judge(REPORT | {"quality": {}}, limits(min_accuracy=0.9), "m")
    assert verdict.kept is None
    assert verdict.name == "min_accuracy of m (x: nobody knows what is right)"
    assert missed([verdict]) == []


def test_a_measure_of_another_task_is_refused() -> None:
    """An example is a limit of BLEU for a classifier."""
    with pytest.raises(ValueError, match="m has no limit min_bleu: its task is judged by accuracy"):
        judge(REPORT, limits(min_bleu=30.0), "m")
