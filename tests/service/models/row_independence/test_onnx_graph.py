"""Graphs are read without their weights, and without values that a client may change."""

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.models.row_independence import prove_rows_independent
from tests.service.models.row_independence.graphs import model_of, serialized


def with_weights(array: np.ndarray, ir_version: int = 8, *, is_input: bool = False) -> onnx.ModelProto:
    """A graph that adds an initializer to its rows."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *array.shape[1:]])]
    if is_input:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, list(array.shape)))
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *array.shape[1:]])],
        [numpy_helper.from_array(array, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)


def test_weights_are_not_decoded() -> None:
    """A file of 64 MB is read in far less memory than its weights have."""
    data = serialized(with_weights(np.zeros((1, 2**24), np.float32)))
    prove_rows_independent(data)
    tracemalloc.start()
    finding = prove_rows_independent(memoryview(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert finding.independent, finding.reason
    assert peak < 2**20


def test_external_data_need_not_be_there() -> None:
    """Only the shape of a tensor with external data is read."""
    model = with_weights(np.zeros((1, 1000), np.float32))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights.bin")
    model.graph.initializer[0].ClearField("raw_data")
    assert prove_rows_independent(serialized(model)).independent


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x3a\xff\xff\xff\xff\x0f", bytes(range(256))])
def test_what_is_no_model_is_not_proved(data: bytes) -> None:
    """The reason says that it is not an ONNX model."""
    finding = prove_rows_independent(data)
    assert (finding.independent, finding.constant_cost) == (False, False)
    assert "not an ONNX model" in finding.reason


@pytest.mark.parametrize("ir_version", [3, 8])
def test_an_initializer_that_is_an_input_is_a_constant(ir_version: int) -> None:
    """If a request may set the initializer, only its shape is known."""
    data = serialized(with_weights(np.zeros((1, 3), np.float32), ir_version, is_input=True))
    assert prove_rows_independent(data).independent
    assert prove_rows_independent(data, overridable=["w"]).independent


def test_a_shape_that_a_request_may_set_proves_nothing() -> None:
    """A shape from an overridable initializer proves nothing, but the same shape as a constant does."""
    text = "(float[B,4] x, int64[3] s) => (float[B,2,2] y) <int64[3] s = {-1,2,2}> { y = Reshape(x, s) }"
    data = model_of(text)
    assert prove_rows_independent(data).independent
    finding = prove_rows_independent(data, overridable=["s"])
    assert (finding.independent, finding.constant_cost) == (False, False)
    assert finding.reason.startswith("Reshape 'y'")


def test_inputs_without_rows_are_the_same_for_all_rows_of_a_call() -> None:
    """An input that all rows share may have any shape; a batched one must have rows."""
    data = model_of("(float[B,4] x, float[S] t) => (float[B,4] y) { m = ReduceMean<keepdims=0>(t) y = Add(x, m) }")
    assert prove_rows_independent(data, batched_inputs=["x"]).independent
    assert not prove_rows_independent(data).independent


def test_nodes_need_not_be_in_order() -> None:
    """Nodes in any order are accepted, because ONNX Runtime sorts them too."""
    model = onnx.load_from_string(model_of("(float[B,4] x) => (float[B,4] y) { a = Relu(x) y = Neg(a) }"))
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert prove_rows_independent(serialized(model)).independent
    nodes[0].input[0] = "y"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert "cannot be followed" in prove_rows_independent(serialized(model)).reason


def test_functions_of_the_model_are_followed() -> None:
    """Attributes of the call count: a function keeps rows apart along one axis and not along another."""
    function = helper.make_function(
        "mine",
        "Centred",
        ["x"],
        ["y"],
        [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=1), helper.make_node("Sub", ["x", "m"], ["y"])],
        [helper.make_opsetid("", 17)],
        ["axes"],
    )
    axes = function.node[0].attribute.add()
    axes.name, axes.ref_attr_name, axes.type = "axes", "axes", onnx.AttributeProto.INTS
    findings = []
    for axis in (1, 0):
        model = with_weights(np.zeros((1, 3), np.float32))
        model.graph.node.insert(0, helper.make_node("Centred", ["x"], ["c"], domain="mine", axes=[axis]))
        model.graph.node[1].input[0] = "c"
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid("mine", 1))
        findings.append(prove_rows_independent(serialized(model)))
    assert [finding.independent for finding in findings] == [True, False]
    assert findings[1].reason == "ReduceMean 'm' reduces over the batch axis"
