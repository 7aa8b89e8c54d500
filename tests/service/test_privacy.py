"""The server sends no telemetry."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

UNSHARE = ["unshare", "--net", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def network_namespaces_are_allowed() -> bool:
    """Return whether this process may create network and mount namespaces."""
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def isolated_server(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server with one model that reports look-ups, with no variables but `environment`.

    It starts like `make serve`, on free ports, and stops when its standard input is closed.
    """
    shutil.copytree(ROOT / "model_store/sentiment-small", folder / "models/sentiment")
    (folder / "home").mkdir()
    command = [*UNSHARE, sys.executable, "-m", "tests.service.isolated_network"]
    # `env -i`, because the tests' process and the variables of a CI have telemetry off.
    command += ["env", "-i", f"HOME={folder / 'home'}", f"PATH={os.environ['PATH']}"]
    command += [f"{name}={value}" for name, value in environment.items()]
    command += [sys.executable, "-m", "service", "--http-port", "0", "--grpc-port", "0"]
    command += ["--model-store", str(folder / "models")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server
        finally:
            # Closing its input stops the server too; a signal would leave the server running.
            server.communicate(timeout=60)


def lines_until(server: subprocess.Popen[str], wanted: str) -> list[str]:
    """Return the printed lines up to the first with this prefix, or all lines."""
    assert server.stdout
    lines = []
    for line in server.stdout:
        lines.append(line.strip())
        if line.startswith(wanted):
            break
    return lines


def written_home(folder: Path) -> list[str]:
    """Return the files that the server wrote into its home."""
    home = folder / "home"
    return sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())


@pytest.mark.skipif(not network_namespaces_are_allowed(), reason="network namespaces are not allowed here")
def test_a_server_resolves_no_name_and_writes_nothing_into_its_home(tmp_path: Path) -> None:
    """It is watched for longer than ONNX Runtime with telemetry needs to look up Microsoft's host.

    An empty variable, which ONNX Runtime reads as on, counts as unset.
    """
    quiet, empty, telling = (tmp_path / name for name in ("quiet", "empty", "telling"))
    with (
        isolated_server(quiet) as first,
        isolated_server(empty, ORT_DISABLE_TELEMETRY="") as second,
    ):
        assert (lines_until(first, "asked"), lines_until(second, "asked")) == (["asked"], ["asked"])
        with isolated_server(telling, ORT_DISABLE_TELEMETRY="0") as control:
            assert lines_until(control, "query")[-1].endswith(".microsoft.com")
        assert [path for path in written_home(telling) if "Microsoft" in path]
        for server, folder in ((first, quiet), (second, empty)):
            assert server.communicate(timeout=60)[0].split("\n") == ["status 0", ""]
            assert written_home(folder) == []


@pytest.mark.parametrize("package", ["service", "export", "load_tests", "tests", "export.torchserve"])
def test_telemetry_is_off_before_onnx_runtime_is_imported(package: str) -> None:
    """Each package that may import ONNX Runtime switches it off first."""
    code = (
        f"import os, sys, {package}; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules,"
        " 'onnxruntime.capi' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert run.stdout.split() == ["1", "False", "False"]


@pytest.mark.parametrize("dockerfile", ["service/Dockerfile", "export/torchserve/Dockerfile"])
def test_images_have_telemetry_off(dockerfile: str) -> None:
    """The variable applies to every program in the image."""
    assert "ORT_DISABLE_TELEMETRY=1" in (ROOT / dockerfile).read_text()
