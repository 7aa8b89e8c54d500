"""The device that engines compute on: CUDA or an error, never the CPU silently."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.engines.device import PROVIDERS, DeviceMissing, choose_device, cuda_problem, providers
from tests.conftest import ROOT, START_S, running_server


def test_graphs_are_captured_by_a_gpu_alone() -> None:
    """The CUDA provider gets one more option; the CPU's providers stay as they are."""
    plain, capturing = providers("cuda"), providers("cuda", cuda_graphs=True)
    assert [each[1].get("enable_cuda_graph") for each in (plain[0], capturing[0])] == [None, "1"]
    assert plain[1:] == capturing[1:] == providers("cpu") == providers("cpu", cuda_graphs=True)
    assert PROVIDERS["cuda"] == plain


def test_asked_for_cuda_and_not_getting_it_is_an_error() -> None:
    """Without CUDA, `cuda` is refused and `auto` takes the CPU; with CUDA, both take it."""
    assert choose_device("cpu") == "cpu"
    problem = cuda_problem()
    if problem is None:
        assert choose_device("cuda") == choose_device("auto") == "cuda"
        return
    assert choose_device("auto") == "cpu"
    with pytest.raises(DeviceMissing, match="device cuda: "):
        choose_device("cuda")


def test_the_server_does_not_start_without_the_device_it_was_told(tmp_path: Path) -> None:
    """It says why, before anything listens."""
    if cuda_problem() is None:
        pytest.skip("CUDA works here: there is nothing to miss")
    command = [sys.executable, "-m", "service", "--device", "cuda", "--model-store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=START_S, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("python -m service: device cuda: ")


def test_auto_says_what_it_has_chosen(tmp_path: Path) -> None:
    """The log and the server's metadata name the device."""
    (tmp_path / "sentiment").symlink_to(ROOT / "model_store/sentiment-small")
    chosen = choose_device("auto")
    with running_server(tmp_path, "--device", "auto") as server:
        assert server.wait_for("listening")["device"] == chosen
        assert f"device:{chosen}" in httpx.get(f"{server.http}/v2").json()["extensions"]
