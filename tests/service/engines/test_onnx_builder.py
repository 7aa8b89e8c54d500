"""Graphs encoded by hand: ONNX accepts them and ONNX Runtime computes what they promise."""

import numpy as np
import onnx
import onnxruntime
import pytest

from service.engines.onnx_builder import FLOAT, FLOAT16, gather_graph, identity_graph


def test_the_identity_graph_computes() -> None:
    """The graph that CUDA is tried with runs on the CPU too."""
    session = onnxruntime.InferenceSession(identity_graph(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3], np.float32)})[0].tolist() == [3]


@pytest.mark.parametrize(("element_type", "dtype"), [(FLOAT, np.float32), (FLOAT16, np.float16)])
@pytest.mark.parametrize("count", [1, 2, 24])
def test_a_gather_graph_gathers_rows(count: int, element_type: int, dtype: type) -> None:
    """Every tensor gives the same rows, in any order and any number."""
    model = gather_graph(count, element_type, rank=3)
    onnx.checker.check_model(onnx.load_from_string(model))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    tensors = {f"x_{number}": np.random.default_rng(number).random((5, 2, 3)).astype(dtype) for number in range(count)}
    gathered = session.run([f"y_{number}" for number in range(count)], {**tensors, "rows": np.array([4, 0, 0, 2])})
    for tensor, rows in zip(tensors.values(), gathered, strict=True):
        np.testing.assert_array_equal(rows, tensor[[4, 0, 0, 2]])


@pytest.mark.parametrize(("axis", "places"), [(1, [1, 1, 0]), (2, [0, 1, 2, 2, 2]), (2, [0])])
def test_a_gather_graph_gathers_places_as_well(axis: int, places: list[int]) -> None:
    """A second axis gives fewer places than it has, or the last one again and again."""
    model = gather_graph(2, FLOAT, rank=3, second_axis=axis)
    onnx.checker.check_model(onnx.load_from_string(model))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    tensors = {f"x_{number}": np.random.default_rng(number).random((5, 2, 3)).astype(np.float32) for number in (0, 1)}
    orders = {"rows": np.array([4, 0, 2]), "places": np.array(places)}
    for tensor, gathered in zip(tensors.values(), session.run(["y_0", "y_1"], {**tensors, **orders}), strict=True):
        np.testing.assert_array_equal(gathered, np.take(tensor[[4, 0, 2]], places, axis=axis))
