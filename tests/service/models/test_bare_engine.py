"""What a bare graph says of its inputs beyond ONNX Runtime."""

from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from service.models.bare_engine import image_tensors
from service.models.row_independence.onnx_graph import read_model
from tests.conftest import write_onnx

PIXELS = {"pixels": (TensorProto.FLOAT, ["rows", 3, 8, 8])}
FEATURES = {"features": (TensorProto.FLOAT, ["rows", None, None, None])}
FILTERS = helper.make_node("Constant", [], ["filters"], value_floats=[0.5] * 3)
SHAPE = helper.make_node("Constant", [], ["shape"], value_ints=[1, 3, 1, 1])
SHAPED = helper.make_node("Reshape", ["filters", "shape"], ["weights"])


@pytest.mark.parametrize(
    ("nodes", "inputs", "expected"),
    [
        ([helper.make_node("Conv", ["pixels", "weights"], ["features"])], PIXELS, {"pixels"}),
        ([helper.make_node("MaxPool", ["pixels"], ["features"], kernel_shape=[2, 2])], PIXELS, {"pixels"}),
        (
            [
                helper.make_node("Sub", ["pixels", "filters"], ["centred"]),
                helper.make_node("Clip", ["centred"], ["clipped"]),
                helper.make_node("Conv", ["clipped", "weights"], ["features"]),
            ],
            PIXELS,
            {"pixels"},
        ),
        (
            [
                helper.make_node("Transpose", ["pixels"], ["turned"], perm=[0, 3, 1, 2]),
                helper.make_node("Conv", ["turned", "weights"], ["features"]),
            ],
            PIXELS,
            set(),
        ),
        ([helper.make_node("Relu", ["pixels"], ["features"])], PIXELS, set()),
        (
            [helper.make_node("GlobalAveragePool", ["sound"], ["features"])],
            {"sound": (TensorProto.FLOAT, ["rows", 3, 8])},
            set(),
        ),
    ],
    ids=["convolution", "pooling", "after elementwise operators", "transposed", "no window", "one axis"],
)
def test_axes_of_images_are_known_from_convolutions(
    nodes: list[Any], inputs: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    """ONNX defines them for the data of convolutions and poolings over two axes."""
    write_onnx(tmp_path / "graph", [FILTERS, SHAPE, SHAPED, *nodes], inputs, FEATURES)
    model = read_model(memoryview((tmp_path / "graph/model.onnx").read_bytes()))
    assert image_tensors(model.graph) == expected
