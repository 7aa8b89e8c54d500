"""The log of a running server: every line has one format, and no reader can block the server."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, running_server

SAYING = """
import ctypes, gc, logging, sys, threading, warnings
from service.config import ServiceConfig
from service.telemetry.logs import Logs, log_uncaught
logs = Logs(ServiceConfig())
logging.getLogger("uvicorn.error").error("a %s of %d", "line", 2)
logging.getLogger("asyncio").warning("not %d", "a number")
warnings.warn("a warning")
def fail():
    text = "what a client sent " * 100_000
    raise ValueError("in a thread")
thread = threading.Thread(target=fail, name="worker")
thread.start(); thread.join()
class Finalized:
    def __del__(self): raise KeyError("in a finalizer")
Finalized()
print("printed", file=sys.stderr)
libc = ctypes.CDLL(None)
red = b"\\x1b[1;31m2026 [E:onnxruntime:, x.cc:1 f] from C\\x1b[m\\n"
for line in (red, b"E0000 00:00:17.5 4 y.cc:1] of gRPC\\n", b"other\\n"):
    libc.write(2, line, len(line))
try:
    raise RuntimeError("at the end")
except RuntimeError:
    log_uncaught(*sys.exc_info())
logs.close(30)
print("after the end", file=sys.stderr)
"""


def test_every_line_is_json_with_level_logger_and_event() -> None:
    """Sources are libraries' loggers, warnings, errors of threads and finalizers, prints and C libraries."""
    run = subprocess.run([sys.executable, "-c", SAYING], capture_output=True, text=True, check=True, cwd=ROOT)
    *lines, last = run.stderr.splitlines()
    assert last == "after the end"
    entries = [json.loads(line) for line in lines]
    assert all({"level", "logger", "event", "timestamp"} <= entry.keys() for entry in entries)
    found = {(entry["level"], entry["logger"], entry["event"]) for entry in entries}
    assert {
        ("error", "uvicorn.error", "a line of 2"),
        ("warning", "asyncio", "not %d"),
        ("error", "python", "a thread has ended by an error"),
        ("warning", "stderr", "printed"),
        ("error", "onnxruntime", "2026 [E:onnxruntime:, x.cc:1 f] from C"),
        ("error", "grpc", "E0000 00:00:17.5 4 y.cc:1] of gRPC"),
        ("warning", "stderr", "other"),
        ("critical", "python", "uncaught error"),
    } <= found
    assert any(logger == "py.warnings" and "a warning" in event for _, logger, event in found)
    assert "what a client sent" not in run.stderr  # tracebacks have no values, and no line is truncated
    raised = [entry["exception"][0]["exc_value"] for entry in entries if "exception" in entry]
    assert sorted(raised) == ["'in a finalizer'", "at the end", "in a thread"]


@contextmanager
def server_without_reader(store: Path, stderr: Any) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a server whose standard output and standard error go to `stderr`; return its address."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "service", "--model-store", str(store), "--http-port", str(port)]
    command += ["--grpc-port", "0", "--unready-before-drain-s", "0"]
    with subprocess.Popen(command, stderr=stderr, stdout=stderr, cwd=ROOT) as popen:
        try:
            base = f"http://127.0.0.1:{port}"
            while status_of(f"{base}/readyz") != 200:
                assert popen.poll() is None
            yield popen, base
        finally:
            popen.kill()


def status_of(url: str, body: bytes | None = None) -> int | None:
    """Return the status of a response, or None if nothing listens yet."""
    try:
        with urllib.request.urlopen(url, body, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def lost_lines(base: str) -> float:
    """Return the server's count of lost lines."""
    with urllib.request.urlopen(f"{base}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith("heed_log_lines_lost_total ")).split()[1])


def small_store(store: Path, folder: Path) -> Path:
    """Make a store with one bare model."""
    import shutil

    shutil.copytree(store / "double", folder / "double")
    return folder


def test_an_unread_log_blocks_no_request(store: Path, tmp_path: Path) -> None:
    """More refusals than a pipe can hold are answered, and SIGTERM ends the server."""
    reading, writing = os.pipe()
    with server_without_reader(small_store(store, tmp_path), writing) as (popen, base):
        os.close(writing)
        body = json.dumps({"inputs": "x"}).encode()
        for _ in range(1000):
            assert status_of(f"{base}/models/double", body) == 400
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(timeout=60) == 0
    os.close(reading)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is not here")
def test_a_full_disk_under_the_log_changes_no_answer(store: Path, tmp_path: Path) -> None:
    """Refusals stay refusals, lost lines are counted, and SIGTERM ends the server."""
    with (
        Path("/dev/full").open("wb") as full,
        server_without_reader(small_store(store, tmp_path), full) as (popen, base),
    ):
        body = json.dumps({"inputs": "x"}).encode()
        for _ in range(5):
            assert status_of(f"{base}/models/double", body) == 400
        while lost_lines(base) < 5:
            pass
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(timeout=60) == 0


def test_sighup_does_not_end_the_server(store: Path, tmp_path: Path) -> None:
    """The log says that it was received."""
    with running_server(small_store(store, tmp_path)) as server:
        server.popen.send_signal(signal.SIGHUP)
        server.wait_for("SIGHUP is ignored: options and models are read at start alone")
        assert status_of(f"{server.http}/readyz") == 200
        assert server.stop() == 0


def test_sighup_does_not_end_the_process_before_the_server_runs() -> None:
    """It is ignored as soon as the process is prepared."""
    code = (
        "import os, signal; from service.__main__ import prepare_process; prepare_process();"
        "os.kill(os.getpid(), signal.SIGHUP); print('lives')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == "lives\n"
