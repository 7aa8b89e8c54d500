"""Limits beside what was measured."""

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
    """Of a classifier."""
    return Limits(task="text-classification", **values)


def test_limits_are_kept_up_to_and_including_themselves() -> None:
    """Greatest and least values."""
    kept = limits(max_p95_ms=20, max_p99_ms=31, max_refused_share=0.1, min_requests_per_s=50, min_accuracy=0.9)
    assert [each.kept for each in judge(REPORT, kept, "m")] == [True] * 5
    broken = limits(max_p95_ms=19.9, max_p99_ms=29, max_refused_share=0, min_requests_per_s=50.1, min_accuracy=0.91)
    verdicts = judge(REPORT, broken, "m")
    assert missed(verdicts) == [
        f"{name} of m"
        for name in ("max_p95_ms", "max_p99_ms", "max_refused_share", "min_requests_per_s", "min_accuracy")
    ]


def test_what_was_not_measured_keeps_no_limit() -> None:
    """Neither latency nor quality, when nothing was answered."""
    nothing = REPORT | {"answered": 0, "p95_ms": None, "quality": {}}
    assert missed(judge(nothing, limits(max_p95_ms=1e9, min_accuracy=0.0), "m")) == [
        "max_p95_ms of m",
        "min_accuracy of m",
    ]


def test_what_nobody_knows_is_said_not_judged() -> None:
    """Answers to inputs without labels."""
    (verdict,) = judge(REPORT | {"quality": {}}, limits(min_accuracy=0.9), "m")
    assert verdict.kept is None
    assert verdict.name == "min_accuracy of m (x: nobody knows what is right)"
    assert missed([verdict]) == []


def test_a_measure_of_another_task_is_refused() -> None:
    """BLEU of labels."""
    with pytest.raises(ValueError, match="m has no limit min_bleu: its task is judged by accuracy"):
        judge(REPORT, limits(min_bleu=30.0), "m")
