"""Where engines compute: CUDA or an error, never the CPU in silence."""

import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest

from service.device import DeviceMissing, choose_device, cuda_problem, identity_graph
from tests.conftest import ROOT, START_S, running_server


def test_the_graph_that_cuda_is_tried_on_computes() -> None:
    """On the CPU too."""
    session = onnxruntime.InferenceSession(identity_graph(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3], np.float32)})[0].tolist() == [3]


def test_asked_for_cuda_and_not_getting_it_is_an_error() -> None:
    """Only where there is none: elsewhere all other tests of CUDA run."""
    assert choose_device("cpu") == "cpu"
    problem = cuda_problem()
    if problem is None:
        assert choose_device("cuda") == choose_device("auto") == "cuda"
        return
    assert choose_device("auto") == "cpu"
    with pytest.raises(DeviceMissing, match="device cuda: "):
        choose_device("cuda")


def test_the_server_does_not_start_without_the_device_it_was_told(tmp_path: Path) -> None:
    """And says why, before anything listens."""
    if cuda_problem() is None:
        pytest.skip("CUDA works here: there is nothing to miss")
    command = [sys.executable, "-m", "service", "--device", "cuda", "--model-store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=START_S, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("python -m service: device cuda: ")


def test_auto_says_what_it_has_chosen(tmp_path: Path) -> None:
    """In the log and in the server's metadata."""
    (tmp_path / "sentiment").symlink_to(ROOT / "model_store/sentiment-small")
    chosen = choose_device("auto")
    with running_server(tmp_path, "--device", "auto") as server:
        assert server.wait_for("listening")["device"] == chosen
        assert f"device:{chosen}" in httpx.get(f"{server.http}/v2").json()["extensions"]
