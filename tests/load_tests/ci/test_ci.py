"""The gate run `python -m load_tests.ci` against real servers."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Server

TASKS_OF = {
    "sentiment-small": "text-classification",
    "translation-en-de": "translation",
    "cifar10-vit": "image-classification",
}


def course(models: dict[str, str], *, rate_per_s: float = 60.0, max_in_flight: int = 256, limits: str = "") -> str:
    """Write a run of a few seconds in which each model has these limits."""
    tables = "".join(f'[ci.models."{name}"]\ntask = "{task}"\n{limits}\n' for name, task in models.items())
    return f"""
[ci]
warm_up_s = 0.5
arrivals = {{rate_per_s = {rate_per_s}, seconds = 1.0, max_in_flight = {max_in_flight}}}
steps = {{users = [2, 4], settle_s = 0.0, seconds = 1.0, judged_users = 2}}
tolerance = {{latency_share = 9.0, latency_ms = 1000.0, throughput_share = 0.9, quality_share = 0.5}}
{tables}"""


def gate(folder: Path, slo: str, *options: str, data_sets: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m load_tests.ci`."""
    (folder / "slo.toml").write_text(slo)
    command = [sys.executable, "-m", "load_tests.ci", "--slo", str(folder / "slo.toml"), "--results", str(folder)]
    environment = {name: value for name, value in os.environ.items() if data_sets or name != "HEED_DATASETS"}
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False, env=environment
    )


def reports(folder: Path) -> list[dict[str, Any]]:
    """Return the reports of all runs so far, in order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("ci-*.json"))]


@pytest.mark.slow
def test_all_tasks_are_loaded_at_once_over_both_protocols(tmp_path: Path) -> None:
    """The committed models are measured at a constant rate and by users; drawn images have no right answer."""
    slo = course(TASKS_OF, limits="max_refused_share = 0.0\nmax_p95_ms = 60000.0")
    slo += "min_accuracy = 0.5\n"  # of the last model, images
    done = gate(tmp_path, slo, data_sets=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every limit that can be judged was kept" in done.stdout
    assert "not judged" in done.stdout
    (report,) = reports(tmp_path)
    assert [phase["kind"] for phase in report["phases"]] == ["warm-up", "arrivals", "users", "users"]
    arrivals = report["phases"][1]
    assert arrivals["all"]["requests"] == arrivals["all"]["answered"] == 60
    assert {name: figures["answered"] for name, figures in arrivals["models"].items()} == dict.fromkeys(TASKS_OF, 20)
    for phase in report["phases"]:
        assert phase["by_protocol"].keys() == {"HTTP", "gRPC"}
        assert phase["cpu"]["server_s"] > 0
    assert report["whole"]["sentiment-small"]["quality"]["accuracy"] > 0.5
    assert report["whole"]["translation-en-de"]["quality"]["bleu"] > 5
    (table,) = tmp_path.glob("ci-*.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["phase"], row["model"]) for row in rows[:2]] == [("warm-up", "(all)"), ("warm-up", "sentiment-small")]
    assert len(rows) == 4 * (1 + len(TASKS_OF))
    (page,) = tmp_path.glob("ci-*.html")
    assert page.read_text().count("<svg") == 6
    assert "There is none." in page.read_text()


@pytest.mark.slow
def test_a_missed_limit_fails_and_runs_are_compared(server: Server, tmp_path: Path) -> None:
    """The second run on a running server is shown beside the first."""
    running = ["--http", server.http, "--grpc", server.grpc]
    models = {"sentiment": "text-classification"}
    first = gate(tmp_path, course(models, limits="min_accuracy = 1.01"), *running)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "missed: min_accuracy of sentiment (whole run)" in first.stdout
    second = gate(tmp_path, course(models, limits="min_accuracy = 0.5"), *running)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "beside the run of" in second.stdout
    before, now = reports(tmp_path)
    assert before["missed"] == ["min_accuracy of sentiment (whole run)"]
    assert now["missed"] == []
    assert now["phases"][1]["cpu"]["server_s"] is None  # the server's process is unknown
    page = max(tmp_path.glob("ci-*.html"))
    assert f"Beside the run of {before['started']}" in page.read_text()


@pytest.mark.slow
def test_requests_that_could_not_be_started_count_as_refused(server: Server, tmp_path: Path) -> None:
    """A server that cannot follow the schedule misses the limit of refusals."""
    slo = course(
        {"sentiment": "text-classification"}, rate_per_s=3000.0, max_in_flight=1, limits="max_refused_share = 0.01"
    )
    done = gate(tmp_path, slo, "--http", server.http, "--grpc", server.grpc)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "missed: max_refused_share of sentiment (whole run)" in done.stdout
    (report,) = reports(tmp_path)
    arrivals = report["phases"][1]
    assert arrivals["not_started"] > 0
    assert arrivals["all"]["requests"] == 3000
    assert arrivals["all"]["answered"] + arrivals["all"]["failures"] == 3000


def test_invalid_options_are_refused_before_the_load(tmp_path: Path) -> None:
    """The error names the option; the exit status is 2."""
    slo = course({"sentiment": "text-classification"})
    for options, why in (
        (["--http", "http://127.0.0.1:1"], "--http and --grpc must be given together"),
        (["--target", "torchserve"], "needs --http and --grpc"),
        (["--model", "other"], "has no table of limits for other"),
        (["--compare", str(tmp_path / "slo.toml")], "slo.toml"),
    ):
        done = gate(tmp_path, slo, *options)
        assert (done.returncode, done.stdout, why in done.stderr) == (2, "", True), done.stderr
    assert gate(tmp_path, "[sentiment]\ntask = 'text-classification'\n").stderr.endswith("has no table [ci]\n")
