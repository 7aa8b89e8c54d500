"""The load tools, run for real against a real server."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from load_tests.bench.__main__ import MIN_COUNT
from load_tests.bench.__main__ import main as bench
from load_tests.bench.rounds import ECHOES, forget_unless_made_by
from load_tests.drivers import Load, drive_grpc, drive_http, mean_batch_rows
from load_tests.material import load_sentences
from load_tests.processes import CORES, LOAD_CORE, SERVER_CORE, Process, free_port, pin
from service.transport.grpc.server import CORE_NICENESS, POLLER_NICENESS
from tests.conftest import ROOT, START_S, Server


@pytest.mark.skipif(len(CORES) < 2, reason="one core: nothing to keep apart")
def test_a_server_under_measurement_has_its_own_core() -> None:
    """Also when the process that starts it has been pinned to another."""
    before = os.sched_getaffinity(0)
    try:
        pin(LOAD_CORE)
        with Process("load_tests.bench.echo_server", str(free_port())) as server:
            assert os.sched_getaffinity(server.popen.pid) == {CORES[SERVER_CORE]}
            assert os.sched_getaffinity(0) == {CORES[LOAD_CORE]}
    finally:
        os.sched_setaffinity(0, before)


def run(server: Server, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Three seconds of Locust."""
    command = [sys.executable, "-m", "load_tests", "--http", server.http, "--grpc", server.grpc, "--seconds", "3"]
    command += ["--users", "4", "--results", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_locust_checks_speed_and_accuracy_over_both_protocols(server: Server, tmp_path: Path) -> None:
    """Exit status 0, a table, a plot, and answers of both protocols that were checked against their labels."""
    # How fast this machine is does not matter here: it may be busy.
    limits = {"task": "text-classification", "max_p95_ms": 6e4, "max_refused_share": 0.001, "min_accuracy": 0.3}
    slo = tmp_path / "slo.toml"
    slo.write_text("\n".join(["[sentiment]", *(f"{name} = {value!r}" for name, value in limits.items())]))
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- load: begin -->old<!-- load: end -->\nAfter.\n")
    done = run(server, tmp_path, "--slo", str(slo), "--document", str(page))
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
def test_every_task_is_judged_by_its_own_measure(
    model_task: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """BLEU of translations, accuracy of images; what is measured of untrained models is low, but it is measured."""
    if model_task == "image-classification" and not os.environ.get("HEED_DATASETS"):
        pytest.skip("CIFAR-10 is not here: HEED_DATASETS is not set")
    fixture, model, measure = {
        "translation": ("translation_server", "endless", "bleu"),
        "image-classification": ("image_server", "vit", "accuracy"),
    }[model_task]
    slo = tmp_path / "slo.toml"
    slo.write_text(f"[{model}]\ntask = '{model_task}'\nmin_{measure} = 0\nmax_refused_share = 0\n")
    done = run(request.getfixturevalue(fixture), tmp_path, "--model", model, "--slo", str(slo))
    assert done.returncode == 0, done.stdout + done.stderr
    (report_file,) = tmp_path.glob("*.json")
    report = json.loads(report_file.read_text())
    assert measure in report["quality"]
    assert report["answers_checked"] == report["requests"] > 20


def test_a_missed_limit_is_named_and_the_exit_status_says_so(server: Server, tmp_path: Path) -> None:
    """An accuracy that no model has."""
    slo = tmp_path / "slo.toml"
    slo.write_text("[sentiment]\ntask = 'text-classification'\nmin_accuracy = 1.01\nmax_p99_ms = 60000\n")
    done = run(server, tmp_path, "--slo", str(slo))
    assert (done.returncode, "missed: min_accuracy of sentiment" in done.stdout) == (1, True), done.stdout + done.stderr


@pytest.mark.parametrize("name", ["requests", "sentences"])
def test_a_benchmark_of_too_few_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured that could not be reported."""
    with pytest.raises(SystemExit):
        bench([f"--{name}", str(MIN_COUNT - 1)])
    assert f"--{name} must be at least {MIN_COUNT}" in capsys.readouterr().err


async def test_the_benchmarks_drivers_get_answers(server: Server) -> None:
    """Over both protocols."""
    texts: Sequence[str] = load_sentences().texts
    for drive, address in ((drive_grpc, server.grpc), (drive_http, server.http)):
        summary = (await drive(int(address.rsplit(":", 1)[1]), "sentiment", texts, 4, 40)).summary()
        assert summary["requests_per_s"] > 0
        assert summary["mean_batch_rows"] >= 1


@pytest.mark.parametrize("name", list(ECHOES))
async def test_the_servers_that_the_benchmark_compares_with_answer(name: str) -> None:
    """The bare echo has no settings of the service; the other one has its scheduling policy and thread priorities."""
    port = free_port()
    with Process("load_tests.bench.echo_server", str(port), *ECHOES[name], core=None) as echo:
        assert len((await drive_grpc(port, "echo", load_sentences().texts, 4, 40)).latencies_s) == 40
        assert echo.cpu_s() > 0
        assert echo.memory_mib()["now"] > 10
        pid, tuned = echo.popen.pid, bool(ECHOES[name])
        assert (os.sched_getscheduler(pid) == os.SCHED_BATCH) is tuned
        async with asyncio.timeout(
            START_S
        ):  # gRPC names its threads, by which they are found, some time after it starts
            while tuned and not thread_niceness(pid) >= {POLLER_NICENESS, CORE_NICENESS}:
                await drive_grpc(port, "echo", load_sentences().texts, 4, 40)
        assert tuned or thread_niceness(pid) == {0}


def thread_niceness(pid: int) -> set[int]:
    """Return the niceness of a process's threads above that of the first."""
    own, threads = os.getpriority(os.PRIO_PROCESS, pid), Path(f"/proc/{pid}/task").iterdir()
    return {os.getpriority(os.PRIO_PROCESS, int(thread.name)) - own for thread in threads}


def test_a_batch_is_counted_once_however_many_answers_came_out_of_it() -> None:
    """One of 63 rows and one of 1 are 32 on average, though 63 of 64 answers tell of the large one."""
    assert mean_batch_rows({63: 63, 1: 1}) == pytest.approx(32)
    load = Load(batches=[(63, 630, 63)] * 63 + [(1, 10, 0)], latencies_s=[0.1], wall_s=1.0)
    assert load.summary()["mean_batch_rows"] == pytest.approx(32)
    assert load.summary()["padded_share"] == pytest.approx(63 / 640)


def test_what_was_made_from_something_else_is_made_anew(tmp_path: Path) -> None:
    """A graph of another commit would be measured under the name of this one."""
    for origin, kept in (("abc", False), ("abc", True), ("def", False), ("def-dirty", False), ("def-dirty", False)):
        forget_unless_made_by(tmp_path / "store", origin)
        assert (tmp_path / "store/model.onnx").exists() == kept, origin
        (tmp_path / "store/model.onnx").touch()


def test_a_server_that_does_not_start_is_quoted() -> None:
    """Its last words say why."""
    with (
        Process("service", "--model-store", "/nowhere", core=None) as server,
        pytest.raises(TimeoutError, match="/nowhere"),
    ):
        server.wait_until_ready("http://127.0.0.1:9/readyz")


def test_our_own_sentences_are_labelled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent where the data set is not at hand."""
    monkeypatch.delenv("HEED_DATASETS", raising=False)
    sentences = load_sentences()
    assert len(set(sentences.texts)) == len(sentences.texts) >= 32
    assert sentences.labels.count("POSITIVE") * 2 == len(sentences.labels)
