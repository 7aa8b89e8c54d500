"""The measurement of stalls and memory: broken limits, and a small run on a real server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from load_tests.stalls.result import is_disturbed, own_wait_ms, page_of, problems_of
from tests.conftest import ROOT

WINDOW = {
    "answer": "200", "seconds": 0.1, "count": 10, "not_ok": 0, "p99_ms": 3.0, "p100_ms": 4.0, "long_waits_s": [],
    "gaps_s": [], "late_ms": 0.1,
}  # fmt: skip
MEMORY = {"idle_mib": 200.0, "peak_mib": 300.0, "afterwards_mib": 201.0, "answer": "200"}


def result(window: dict[str, Any], memory: dict[str, Any], *, permitted: bool = True) -> dict[str, Any]:
    """Make the result of one round of one case, and of the attacks."""
    rounds = [WINDOW | window]
    return {
        "cases": [{"name": "x", "permitted": permitted, "rounds": rounds, "repeated": []}],
        "memory": MEMORY | memory,
    }


@pytest.mark.parametrize(
    ("measured", "problem"),
    [
        (result({}, {}), ""),
        (result({"answer": "413 x 8, 429 x 4"}, {}, permitted=False), ""),
        (result({"answer": "OK x 128, the last after 500 ms"}, {}), ""),
        (result({"p100_ms": 50.1}, {}), "others waited 50 ms"),
        (result({"not_ok": 1}, {}), "1 answers of /healthz were not 200"),
        (result({"answer": "400"}, {}), "permitted, and answered 400"),
        (result({"answer": "400 x 3, 500 x 1"}, {}, permitted=False), "answered 400 x 3, 500 x 1"),
        (result({"answer": "INTERNAL"}, {}, permitted=False), "answered INTERNAL"),
        (result({}, {"peak_mib": 713.0}), "peak_mib 713"),
        (result({}, {"afterwards_mib": 265.0}), "afterwards_mib 265"),
        (result({}, {"answer": "429"}), "after the attacks a request was answered 429"),
    ],
)
def test_broken_limits_are_reported(measured: dict[str, Any], problem: str) -> None:
    """Long waits, failures, refused requests and memory each get a sentence."""
    problems = problems_of(measured)
    assert len(problems) == bool(problem)
    assert not problems or problem in problems[0]


@pytest.mark.parametrize(
    ("waits_s", "gaps_s", "own_ms"),
    [
        ([], [(7.0, 7.01)], 4),
        ([(7.0, 7.09)], [], 90),
        ([(7.0, 7.09)], [(6.0, 6.9), (7.1, 7.2)], 90),
        ([(7.0, 7.09)], [(6.99, 7.02), (7.08, 7.5)], 60),
        ([(7.0, 7.09)], [(7.01, 7.05), (7.03, 7.06)], 40),  # two cores at the same time: counted once
        ([(7.0, 7.09), (8.0, 8.06)], [(7.01, 7.08)], 60),  # each wait has its own gaps
    ],
)
def test_gaps_of_the_cores_are_subtracted_from_waits(
    waits_s: list[tuple[float, float]], gaps_s: list[tuple[float, float]], own_ms: float
) -> None:
    """The union of the gaps of both cores within each wait is subtracted."""
    longest_ms = max([1e3 * (end_s - begin_s) for begin_s, end_s in waits_s], default=4.0)
    window = WINDOW | {"p100_ms": longest_ms, "long_waits_s": waits_s, "gaps_s": gaps_s}
    assert own_wait_ms(window) == pytest.approx(own_ms)
    assert is_disturbed(window) is (own_ms <= 50 < longest_ms)


def test_the_page_lists_every_repeated_round() -> None:
    """It has the case, the wait, and the wait without the gaps."""
    measured = result({}, {})
    waits = {"p100_ms": 90.04, "long_waits_s": [(7.0, 7.09004)], "gaps_s": [(7.02, 7.069)]}
    measured["cases"][0]["repeated"] = [WINDOW | waits]
    measured |= {"memory": None, "problems": [], "watched": True}
    measured |= {"command": "c", "commit": "c", "date": "d", "machine": "m", "num_rounds": 1, "steal_s": 0, "wall_s": 1}
    assert "- x: waited 90.0 ms, 41.0 without the gaps" in page_of(measured)


def test_a_small_run_measures_cases_and_memory(tmp_path: Path) -> None:
    """Two cases and one attack on real servers write figures into the page and set the exit status."""
    page, work = tmp_path / "page.md", tmp_path / "work"
    page.write_text("<!-- stalls: begin --><!-- stalls: end -->\n")
    command = [sys.executable, "-m", "load_tests.stalls", "--rounds", "1", "--work", str(work), "--document", str(page)]
    command += ["--cases", "Loop of 2^62", "--attacks", "half-messages", "--attack-s", "1", "--rest-s", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads((work / "result.json").read_text())
    assert done.returncode == bool(found["problems"])
    answers = [case["rounds"][0]["answer"] for case in found["cases"]]
    assert answers == ["504", "DEADLINE_EXCEEDED"]
    assert all(case["rounds"][0]["count"] > 10 and case["rounds"][0]["not_ok"] == 0 for case in found["cases"])
    assert 0 < found["memory"]["idle_mib"] <= found["memory"]["peak_mib"]
    assert found["memory"]["sent"]["half-sent messages of 60 kB"] > 0
    text = page.read_text()
    assert "| Loop of 2^62 turns with a deadline of 500 ms, gRPC | DEADLINE_EXCEEDED |" in text
    assert "| idle |" in text


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--cases", "no such case"], ["--attacks", "nothing"]])
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    """The exit status is 2, and nothing is started."""
    command = [sys.executable, "-m", "load_tests.stalls", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
