"""`python -m load_tests` judges a running server by the limits of slo.toml."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Server


def run(server: Server, folder: Path, *options: str, seconds: int = 3) -> subprocess.CompletedProcess[str]:
    """Run Locust."""
    command = [sys.executable, "-m", "load_tests", "--http", server.http, "--grpc", server.grpc]
    command += ["--seconds", str(seconds), "--users", "4", "--results", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_locust_checks_speed_and_accuracy_over_both_protocols(server: Server, tmp_path: Path) -> None:
    """The run exits with 0 and writes a table and a plot; the answers of both protocols were checked."""
    # The limit is far above any latency, because the machine may be busy.
    limits = {"task": "text-classification", "max_p95_ms": 6e4, "max_refused_share": 0.001, "min_accuracy": 0.3}
    slo = tmp_path / "slo.toml"
    slo.write_text("\n".join(["[sentiment]", *(f"{name} = {value!r}" for name, value in limits.items())]))
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- load: begin -->old<!-- load: end -->\nAfter.\n")
    # On a busy machine the users of one protocol may have no answer in the first seconds.
    done = run(server, tmp_path, "--slo", str(slo), "--document", str(page), seconds=8)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every limit of slo.toml was kept" in done.stdout
    assert page.read_text().startswith("Before.\n<!-- load: begin -->\n\n`python -m load_tests ")
    assert page.read_text().endswith("<!-- load: end -->\nAfter.\n")
    (report_file,) = tmp_path.glob("*.json")
    report = json.loads(report_file.read_text())
    assert report["failures"] == 0
    assert report["answers_checked"] == report["requests"] > 0
    assert f"| sentiment | {report['requests']:,} |" in page.read_text()
    assert {"HTTP", "gRPC"} == {name for name, entry in report["by_protocol"].items() if entry["requests"]}
    assert report_file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "min_accuracy" in report_file.with_suffix(".txt").read_text()


@pytest.mark.parametrize("model_task", ["translation", "image-classification"])
def test_every_task_is_judged_by_its_own_measure(model_task: str, committed_server: Server, tmp_path: Path) -> None:
    """Translations have BLEU, and images accuracy."""
    if model_task == "image-classification" and not os.environ.get("HEED_DATASETS"):
        pytest.skip("CIFAR-10 is not here: HEED_DATASETS is not set")
    model, measure = {
        "translation": ("translation-en-de", "bleu"),
        "image-classification": ("cifar10-vit", "accuracy"),
    }[model_task]
    slo = tmp_path / "slo.toml"
    slo.write_text(f"[{model}]\ntask = '{model_task}'\nmin_{measure} = 0\nmax_refused_share = 0\n")
    done = run(committed_server, tmp_path, "--model", model, "--slo", str(slo))
    assert done.returncode == 0, done.stdout + done.stderr
    (report_file,) = tmp_path.glob("*.json")
    report = json.loads(report_file.read_text())
    assert measure in report["quality"]
    assert report["answers_checked"] == report["requests"] > 0


def test_a_missed_limit_is_named_and_sets_the_exit_status(server: Server, tmp_path: Path) -> None:
    """The limit is an accuracy that no model reaches."""
    slo = tmp_path / "slo.toml"
    slo.write_text("[sentiment]\ntask = 'text-classification'\nmin_accuracy = 1.01\nmax_p99_ms = 60000\n")
    done = run(server, tmp_path, "--slo", str(slo))
    assert (done.returncode, "missed: min_accuracy of sentiment" in done.stdout) == (1, True), done.stdout + done.stderr
