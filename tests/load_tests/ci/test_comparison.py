"""Two gate runs side by side."""

import json
from pathlib import Path
from typing import Any

import pytest

from load_tests.ci.comparison import compare, differences, previous, read_run
from load_tests.slo import Tolerance

TOLERANCE = Tolerance(latency_share=0.5, latency_ms=10.0, throughput_share=0.25, quality_share=0.02)


def run(p95_ms: float = 100.0, accuracy: float = 0.9, knee: float = 200.0, cpu_ms: float = 5.0) -> dict[str, Any]:
    """Make a report with the figures that are compared."""
    latency = {"p50_ms": 10.0, "p95_ms": p95_ms, "p99_ms": None}
    arrivals = {
        "kind": "arrivals",
        "name": "100 requests/s",
        "models": {"m": latency},
        "cpu": {"load_ms_per_answer": 1.0, "server_ms_per_answer": cpu_ms},
    }
    return {
        "kind": "load-ci",
        "target": "heed",
        "phases": [arrivals],
        "judged_steps": {"m": latency},
        "whole": {"m": {"quality": {"accuracy": accuracy}, "refused_share": 0.0}},
        "knee": {"requests_per_s": knee, "highest_requests_per_s": knee},
    }


@pytest.mark.parametrize(
    ("changed", "marked"),
    [
        ({}, set()),
        ({"p95_ms": 149.0}, set()),
        ({"p95_ms": 151.0}, {"m: p95 ms, 100 requests/s", "m: p95 ms, judged steps"}),
        ({"p95_ms": 20.0}, set()),
        ({"accuracy": 0.885}, set()),
        ({"accuracy": 0.88}, {"m: accuracy"}),
        ({"knee": 149.0}, {"knee: answers/s", "highest: answers/s"}),
        ({"cpu_ms": 6.5}, {"server: CPU ms an answer, 100 requests/s"}),
    ],
)
def test_figures_worse_than_the_tolerance_are_marked(changed: dict[str, float], marked: set[str]) -> None:
    """Each kind of figure has its own tolerance; an improvement is no regression."""
    changes = compare(run(), run(**changed), TOLERANCE)
    assert {change.name for change in changes if change.regressed} == marked


def test_a_small_latency_may_double() -> None:
    """A latency is marked only if it exceeds the tolerance both as a fraction and in milliseconds."""
    assert not any(change.regressed for change in compare(run(p95_ms=5.0), run(p95_ms=14.0), TOLERANCE))


def test_a_figure_of_one_run_only_is_shown_and_not_marked() -> None:
    """An example is a new model."""
    other = run()
    other["whole"]["n"], other["judged_steps"]["n"] = other["whole"]["m"], other["judged_steps"]["m"]
    other["phases"][0]["models"]["n"] = other["judged_steps"]["m"]
    (change,) = (change for change in compare(run(), other, TOLERANCE) if change.name == "n: accuracy")
    assert (change.before, change.now, change.share, change.regressed) == (None, 0.9, None, False)


def test_different_conditions_are_named() -> None:
    """A note says that the machine differs."""
    assert differences(run() | {"machine": "a"}, run() | {"machine": "b"}) == ["machine: a then, b now"]


def test_the_previous_run_is_the_latest_of_the_same_target(tmp_path: Path) -> None:
    """The current run, runs of another runtime, and other files are skipped."""
    for name, target in (("ci-1", "heed"), ("ci-2", "heed"), ("ci-3", "torchserve"), ("ci-5", "heed")):
        (tmp_path / f"{name}.json").write_text(json.dumps(run() | {"target": target}))
    (tmp_path / "ci-4.json").write_text("[]")
    assert previous(tmp_path, "heed", tmp_path / "ci-5.json") == tmp_path / "ci-2.json"
    assert previous(tmp_path / "empty", "heed", tmp_path / "ci-5.json") is None
    with pytest.raises(ValueError, match="is no result of load-ci"):
        read_run(tmp_path / "ci-4.json")
