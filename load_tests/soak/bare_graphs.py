"""Bare graphs with reference answers in numpy: some whose requests may share a call, some whose must not.

Shapes: R rows of a request, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
MAX_ROWS = 100  # more than one engine call of 64 rows
Array = NDArray[np.float32]


@dataclass(frozen=True)
class BareGraph:
    """A graph with input `x` [R, F] and output `y`, and its equal in numpy."""

    name: str
    nodes: Callable[[], list[onnx.NodeProto]]
    answer: Callable[[Array], Array]


def weights() -> Array:
    """Return the weights of `external`, which are stored in a file of their own."""
    return np.random.default_rng(8).standard_normal((WIDTH, WIDTH)).astype(np.float32)


GRAPHS = (
    BareGraph("soak-double", lambda: [helper.make_node("Add", ["x", "x"], ["y"])], lambda x: x + x),
    BareGraph("soak-external", lambda: [helper.make_node("MatMul", ["x", "w"], ["y"])], lambda x: x @ weights()),
    # The rows of these graphs depend on each other, so requests must not share a call.
    BareGraph(
        "soak-standardize",
        lambda: [
            helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["centred"]),
            helper.make_node("Mul", ["centred", "centred"], ["squares"]),
            helper.make_node("ReduceMean", ["squares"], ["variance"], keepdims=1),
            helper.make_node("Sqrt", ["variance"], ["deviation"]),
            helper.make_node("Div", ["centred", "deviation"], ["y"]),
        ],
        lambda x: (x - x.mean()) / x.std(),
    ),
    BareGraph(
        "soak-largest",
        lambda: [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=1),
            helper.make_node("Div", ["x", "largest"], ["y"]),
        ],
        lambda x: x / x.max(),
    ),
)


def draw_input(rng: Random) -> Array:
    """Draw the rows of a request: mostly few, at times more than one engine call takes, of very different scale."""
    rows = rng.choice((1, 1, 1, 2, 3, 5, 8, 40, MAX_ROWS))
    numbers = np.random.default_rng(rng.randrange(2**32))
    return (numbers.standard_normal((rows, WIDTH)) * 10.0 ** rng.randint(-1, 3)).astype(np.float32)


def write_graphs(store: Path) -> None:
    """Write each graph as `<store>/<name>/1/model.onnx`, the weights of one beside it in `model.onnx.data`."""
    for graph in GRAPHS:
        folder = store / graph.name / "1"
        folder.mkdir(parents=True)
        shape: list[str | int] = ["rows", WIDTH]
        model = helper.make_model(
            helper.make_graph(
                graph.nodes(),
                graph.name,
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
                [numpy_helper.from_array(weights(), "w")] if graph.name == "soak-external" else [],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        )
        external = graph.name == "soak-external"
        onnx.save(
            model,
            folder / "model.onnx",
            save_as_external_data=external,
            location="model.onnx.data" if external else None,
            size_threshold=0,
        )
