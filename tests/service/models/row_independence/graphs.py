"""Small ONNX graphs, written as text."""

import numpy as np
import onnx
import onnxruntime
from onnx import parser

from service.models.row_independence import Finding, prove_rows_independent
from service.tensors import Arrays


def model_of(graph: str, opset: int = 17, ir_version: int = 8) -> bytes:
    """An encoded model: the graph's signature and nodes in ONNX's text form, with all common operator sets.

    A tensor that is declared without elements, such as `<float[4,2] w>`, gets random ones.
    """
    sets = f'"" : {opset}, "ai.onnx.ml" : 3, "com.microsoft" : 1'
    text = f"<ir_version: {ir_version}, opset_import: [{sets}]> g {graph}"
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for weight in model.graph.value_info:
        shape = [size.dim_value for size in weight.type.tensor_type.shape.dim]
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, weight.name))
    del model.graph.value_info[:]
    return serialized(model)


def finding_of(graph: str, opset: int = 17) -> Finding:
    """Run the proof on a graph."""
    return prove_rows_independent(model_of(graph, opset))


def computed(model: bytes, inputs: Arrays) -> Arrays:
    """Compute a model in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    results = session.run(None, inputs)
    return {output.name: np.asarray(result) for output, result in zip(session.get_outputs(), results, strict=True)}


def serialized(model: onnx.ModelProto) -> bytes:
    """Encode a model."""
    return bytes(model.SerializeToString())
