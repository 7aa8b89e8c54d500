"""The console script `heed`, run as a process."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import ROOT, START_S

MODULE, FUNCTION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["heed"].split(":")
# As pip writes the script.
SCRIPT = f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"
SERVE = ["serve", "--http-port", "0", "--grpc-port", "0", "--unready-before-drain-s", "0", "--model-store"]


def heed(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script to its end, after some code."""
    command = [sys.executable, "-c", before + SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=START_S, check=False)


@pytest.mark.parametrize("module", [None, "service", "export"])
def test_the_version_is_that_of_the_package(module: str | None) -> None:
    """The script and both programs print the same line."""
    command = [sys.executable, "-c", SCRIPT] if module is None else [sys.executable, "-m", module]
    run = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (run.returncode, run.stdout) == (0, f"heed {version('heed')}\n"), run.stderr


def test_the_usage_names_both_programs() -> None:
    """The usage is also printed without a command."""
    assert heed().stdout == heed("--help").stdout
    assert "python -m service" in heed().stdout
    assert "python -m export" in heed().stdout


def test_serve_starts_the_server_until_sigterm(tmp_path: Path) -> None:
    """It listens, and ends with status 0."""
    command = [sys.executable, "-c", SCRIPT, *SERVE, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as popen:
        assert popen.stderr
        events = (json.loads(line)["event"] for line in popen.stderr)
        assert "listening" in events
        popen.terminate()
        assert popen.wait(timeout=START_S) == 0


def test_serve_imports_neither_torch_nor_export(tmp_path: Path) -> None:
    """All that the server imports is there when it finds no model store."""
    report = (
        "import atexit, sys; names = ('torch', 'export', 'onnx', 'service.server');"
        "atexit.register(lambda: print([name for name in names if name in sys.modules]));"
    )
    run = heed(*SERVE, str(tmp_path / "nowhere"), before=report)
    assert (run.returncode, run.stdout.strip()) == (1, "['service.server']"), run.stderr


def test_commands_of_export_are_on_the_same_level(tmp_path: Path) -> None:
    """Options and the exit status pass through; an unknown command is refused with the known ones."""
    assert "usage: python -m export train" in heed("train", "--help").stdout
    assert "train" in heed("export", "--help").stdout
    missing = heed("convert", "nothing", "--run-dir", str(tmp_path))
    assert (missing.returncode, missing.stderr.startswith("convert: ")) == (1, True), missing.stderr
    unknown = heed("trian")
    assert (unknown.returncode, "invalid choice: 'trian'" in unknown.stderr) == (2, True)


@pytest.mark.parametrize("missing", ["torch", "rich", "export"])
def test_an_installation_that_only_serves_names_the_extra(missing: str) -> None:
    """Where a package of training is missing, or `export/` as in the image of the server."""
    run = heed("train", "sentiment", before=f"import sys; sys.modules[{missing!r}] = None;")
    assert (run.returncode, "pip install 'heed[train]'" in run.stderr) == (2, True), run.stderr
    assert "Traceback" not in run.stderr
