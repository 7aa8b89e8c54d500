"""Where engines compute: CUDA or an error, never the CPU in silence."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest

from service.engines.device import (
    FLOAT,
    FLOAT16,
    PROVIDERS,
    DeviceMissing,
    Turns,
    choose_device,
    cuda_problem,
    gather_graph,
    identity_graph,
    providers,
)
from tests.conftest import ROOT, START_S, running_server


def test_the_graph_that_cuda_is_tried_on_computes() -> None:
    """On the CPU too."""
    session = onnxruntime.InferenceSession(identity_graph(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3], np.float32)})[0].tolist() == [3]


@pytest.mark.parametrize(("element_type", "dtype"), [(FLOAT, np.float32), (FLOAT16, np.float16)])
@pytest.mark.parametrize("count", [1, 2, 24])
def test_the_graph_that_moves_rows_picks_them(count: int, element_type: int, dtype: type) -> None:
    """Of every tensor the same rows, in any order and any number."""
    model = gather_graph(count, element_type, rank=3)
    onnx.checker.check_model(onnx.load_from_string(model))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    tensors = {f"x_{number}": np.random.default_rng(number).random((5, 2, 3)).astype(dtype) for number in range(count)}
    picked = session.run([f"y_{number}" for number in range(count)], {**tensors, "rows": np.array([4, 0, 0, 2])})
    for tensor, rows in zip(tensors.values(), picked, strict=True):
        np.testing.assert_array_equal(rows, tensor[[4, 0, 0, 2]])


@pytest.mark.parametrize(("axis", "places"), [(1, [1, 1, 0]), (2, [0, 1, 2, 2, 2]), (2, [0])])
def test_the_graph_that_moves_rows_picks_places_as_well(axis: int, places: list[int]) -> None:
    """Of another axis: fewer than there are, or the last one again and again."""
    model = gather_graph(2, FLOAT, rank=3, second_axis=axis)
    onnx.checker.check_model(onnx.load_from_string(model))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    tensors = {f"x_{number}": np.random.default_rng(number).random((5, 2, 3)).astype(np.float32) for number in (0, 1)}
    orders = {"rows": np.array([4, 0, 2]), "places": np.array(places)}
    for tensor, picked in zip(tensors.values(), session.run(["y_0", "y_1"], {**tensors, **orders}), strict=True):
        np.testing.assert_array_equal(picked, np.take(tensor[[4, 0, 2]], places, axis=axis))


def test_graphs_are_captured_by_a_gpu_alone() -> None:
    """An option of the CUDA provider more, and nothing where there is none."""
    plain, capturing = providers("cuda"), providers("cuda", cuda_graphs=True)
    assert [each[1].get("enable_cuda_graph") for each in (plain[0], capturing[0])] == [None, "1"]
    assert plain[1:] == capturing[1:] == providers("cpu") == providers("cpu", cuda_graphs=True)
    assert PROVIDERS["cuda"] == plain


def test_what_need_not_be_alone_goes_on_side_by_side() -> None:
    """Two threads meet within their turns."""
    turns, both = Turns(), Barrier(2)

    def beside() -> None:
        with turns.beside():
            both.wait(START_S)

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(beside), pool.submit(beside)]:
            each.result(START_S)


def test_what_must_be_alone_is_alone() -> None:
    """Among many that go on side by side, one after the other without a pause: its moment comes, and it is its own."""
    turns, done, inside = Turns(), Event(), set()

    def beside(number: int) -> None:
        while not done.is_set():
            with turns.beside():
                inside.add(number)
                assert "alone" not in inside
                inside.discard(number)

    def alone() -> None:
        try:
            for _ in range(50):
                with turns.alone():
                    inside.add("alone")
                    assert inside == {"alone"}
                    inside.discard("alone")
        finally:
            done.set()

    with ThreadPoolExecutor(5) as pool:
        for each in [*(pool.submit(beside, number) for number in range(4)), pool.submit(alone)]:
            each.result(START_S)


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
