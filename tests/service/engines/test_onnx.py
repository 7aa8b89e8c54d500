"""Engines of ONNX Runtime: calls bound to device memory."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from model_store.folder import GRAPH
from service.engines.host import EngineHost
from service.engines.onnx import OnnxEngine
from service.engines.onnx_session import EngineError
from service.tensors import NUMPY_OF
from tests.conftest import write_onnx


def test_calls_without_buckets_are_bound_at_any_shape(tmp_path: Path) -> None:
    """Bound calls answer like unbound ones, for every type, empty and scalar tensors; later calls change no answer."""
    types = [name for name in NUMPY_OF if name != "BOOL"]
    nodes = [helper.make_node("Identity", [name], [f"{name}_copy"]) for name in types]
    nodes += [helper.make_node("ReduceSum", ["FP32"], ["total"], keepdims=0), helper.make_node("Relu", ["FP32"], ["z"])]
    elements = {name: helper.np_dtype_to_tensor_dtype(NUMPY_OF[name]) for name in types}
    inputs = {name: (element, ["n", "any"]) for name, element in elements.items()}
    outputs = {f"{name}_copy": tensor for name, tensor in inputs.items()}
    floats = TensorProto.FLOAT
    write_onnx(tmp_path / "1", nodes, inputs, outputs | {"total": (floats, []), "z": (floats, ["n", "any"])})
    bound, plain = (OnnxEngine(tmp_path / "1" / GRAPH, 1, EngineHost(), binds=binds) for binds in (True, False))
    assert (bound.binds, plain.binds, OnnxEngine(tmp_path / "1" / GRAPH, 1, EngineHost()).binds) == (True, False, False)
    kept = []
    for seed, shape in enumerate([(3, 2), (1, 5), (3, 2), (4, 0), (0, 3), (1, 1)]):
        rng = np.random.default_rng(seed)
        # Every other column: what lies apart in memory is as good.
        feeds = {name: (50 * rng.random((shape[0], 2 * shape[1])))[:, ::2].astype(NUMPY_OF[name]) for name in types}
        kept.append((bound.run(feeds), plain.run({name: array.copy() for name, array in feeds.items()})))
    for found, expected in kept:
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    for wrong in ({}, {"other": np.zeros((1, 1), np.float32)}, feeds | {"FP32": np.zeros(3, np.float32)}):
        with pytest.raises(EngineError):
            bound.run(wrong)


def test_strings_are_not_bound(tmp_path: Path) -> None:
    """Strings lie in the host's memory, whatever the device."""
    texts = (TensorProto.STRING, ["n"])
    write_onnx(tmp_path / "1", [helper.make_node("Identity", ["text"], ["copy"])], {"text": texts}, {"copy": texts})
    engine = OnnxEngine(tmp_path / "1" / GRAPH, 1, EngineHost(), binds=True)
    assert not engine.binds
    assert engine.run({"text": np.array(["a", "b"], dtype=object)})["copy"].tolist() == ["a", "b"]
