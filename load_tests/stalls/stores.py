"""Model stores of the measurement: bare graphs beside two trained models, and a thousand models."""

import shutil
from pathlib import Path

import onnx
from onnx import TensorProto, helper

LOOP, FLOATS, INTEGERS, TEXTS = "stalls-loop", "stalls-floats", "stalls-integers", "stalls-texts"
SAME = {FLOATS: TensorProto.FLOAT, INTEGERS: TensorProto.INT64, TEXTS: TensorProto.STRING}
TRAINED = ("sentiment", "cifar10-vit")


def make_store(store: Path, models: Path) -> None:
    """Make a store of two classifiers, a graph that loops, and graphs that return their input."""
    shutil.rmtree(store, ignore_errors=True)
    for name in TRAINED:
        shutil.copytree(models / name, store / name)
    write_loop(store / LOOP / "1")
    for name, kind in SAME.items():
        write_same(store / name / "1", kind)


def make_many(store: Path, count: int) -> None:
    """Make a store of this many models of one small graph."""
    shutil.rmtree(store, ignore_errors=True)
    for number in range(count):
        write_same(store / f"model-{number:04d}" / "1", TensorProto.FLOAT)


def write_same(folder: Path, kind: int) -> None:
    """Write a graph whose `y` is `x`, of any shape."""
    write(
        folder,
        [helper.make_node("Identity", ["x"], ["y"])],
        helper.make_tensor_value_info("x", kind, None),
        helper.make_tensor_value_info("y", kind, None),
    )


def write_loop(folder: Path) -> None:
    """Write a graph whose `y` is `n`, counted in a loop of n turns."""
    scalar: list[int] = []
    number, going = (TensorProto.INT64, scalar), (TensorProto.BOOL, scalar)
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Add", ["before", "one"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("number", *number),
            helper.make_tensor_value_info("going", *going),
            helper.make_tensor_value_info("before", *number),
        ],
        [helper.make_tensor_value_info("on", *going), helper.make_tensor_value_info("after", *number)],
        [helper.make_tensor("one", TensorProto.INT64, [], [1])],
    )
    nodes = [
        helper.make_node("Constant", [], ["more"], value=helper.make_tensor("true", TensorProto.BOOL, [], [True])),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Squeeze", ["n"], ["count"]),
        helper.make_node("Loop", ["count", "more", "zero"], ["y"], body=body),
    ]
    write(
        folder,
        nodes,
        helper.make_tensor_value_info("n", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("y", *number),
    )


def write(folder: Path, nodes: list[onnx.NodeProto], taken: onnx.ValueInfoProto, given: onnx.ValueInfoProto) -> None:
    """Write a graph of one input and one output as `model.onnx`."""
    folder.mkdir(parents=True)
    graph = helper.make_graph(nodes, "stalls", [taken], [given])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
