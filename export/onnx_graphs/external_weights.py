"""Shares weights between graphs: a model's weights are stored once, however many graphs compute it.

ONNX lets a graph keep a tensor in another file, at an offset. That may be any file of its folder, and here it is one of
the graphs that are served, whose bytes hold the tensor as that graph needs it: in half precision, before a cast, or in
int8, before the product with its scale. A weight is found by its value in single or in half precision, whatever the
exporter called it, as it is or transposed. The checksums of the manifest bind the files together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.onnx_graphs.import_weights import StoredGraph

MIN_SHARED_BYTES = 256  # in float32; smaller weights stay in the graph itself


@dataclass(frozen=True)
class StoredWeight:
    """The place of a weight in a served graph's file, and how to restore it from the stored bytes."""

    name: str  # in the served graph
    file: Path
    tensor: TensorProto  # as it is stored
    scale: NDArray[np.float32] | None  # of int8: one number, or one for each column
    zero_point: NDArray[Any] | None


def share_weights(path: Path, graphs: Sequence[Path]) -> None:
    """Let a graph read its weights from the files of other graphs, in place; it keeps weights that they lack."""
    model = onnx.load(path)
    graph, known, read_in = model.graph, _stored_weights(graphs), _ReadIn(graphs)
    nodes, kept, first = list(graph.node), list[TensorProto](), list[Any]()
    for tensor in graph.initializer:
        array, turned = numpy_helper.to_array(tensor), False
        stored = None
        if array.dtype in (np.float32, np.float16) and array.nbytes >= MIN_SHARED_BYTES:
            stored = known.get(_key(array))
            if stored is None and array.ndim == 2:
                stored, turned = known.get(_key(array.T)), True
        if stored is None:
            kept.append(tensor)
            continue
        takers = [node for node in nodes if tensor.name in node.input]
        if not turned and all(node.op_type == "Gather" and node.input[0] == tensor.name for node in takers):
            # Few rows of an embedding table are needed: convert them to floats after the lookup.
            for node in takers:
                output = node.output[0]
                node.input[0], node.output[0] = read_in.weight(stored), f"{output}.stored"
                place = nodes.index(node) + 1
                nodes[place:place] = _made_float(stored, f"{output}.stored", output, tensor.data_type, read_in)
            continue
        straight = f"{tensor.name}.straight" if turned else tensor.name
        first += _made_float(stored, read_in.weight(stored), straight, tensor.data_type, read_in)
        if turned:
            first.append(helper.make_node("Transpose", [straight], [tensor.name], perm=[1, 0]))
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend([*kept, *read_in.tensors.values()])
    graph.node.extend([*first, *nodes])
    # The exporter's notes about every node, such as source lines, would be most of the file.
    noted: list[onnx.NodeProto | onnx.ValueInfoProto | onnx.GraphProto | onnx.ModelProto]
    noted = [*graph.node, *graph.input, *graph.output, graph, model]
    for each in noted:
        del each.metadata_props[:]
        each.doc_string = ""
    path.write_bytes(model.SerializeToString())


def _stored_weights(graphs: Sequence[Path]) -> dict[bytes, StoredWeight]:
    """Index the weights of served graphs by their values."""
    known: dict[bytes, StoredWeight] = {}
    for path in graphs:
        graph = StoredGraph(path)
        for name, tensor in graph.stored.items():
            scale = zero_point = None
            whole = name.removesuffix(".half")
            if name.endswith("_quantized"):
                whole = name.removesuffix("_quantized")
                scale, zero_point = graph.arrays[f"{whole}_scale"], graph.arrays[f"{whole}_zero_point"]
            array = graph.arrays[whole]
            if array.dtype == np.float32 and tensor.raw_data:
                weight = StoredWeight(name, path, tensor, scale, zero_point)
                known.setdefault(_key(array), weight)
                with np.errstate(over="ignore"):
                    known.setdefault(_key(array.astype(np.float16)), weight)
    return known


def _key(array: NDArray[Any]) -> bytes:
    return repr((array.dtype.name, array.shape)).encode() + np.ascontiguousarray(array).tobytes()


class _ReadIn:
    """The tensors that a graph reads from the files of served graphs, each once."""

    def __init__(self, graphs: Sequence[Path]) -> None:
        self.tensors: dict[str, TensorProto] = {}
        self._contents = {file: file.read_bytes() for file in graphs}

    def weight(self, stored: StoredWeight) -> str:
        """Return the name of a stored weight, and add it as an external tensor."""
        tensor = stored.tensor
        return self._tensor(stored.name, stored.file, tensor.data_type, list(tensor.dims), tensor.raw_data)

    def number(self, stored: StoredWeight, kind: str, array: NDArray[np.float32]) -> str:
        """Return the name of an int8 weight's scale or zero point; small ones stand in the graph itself."""
        name, content = f"{stored.name}.{kind}", array.tobytes()
        if array.nbytes < MIN_SHARED_BYTES or content not in self._contents[stored.file]:
            name = f"{stored.file.name}:{name}"
            self.tensors[name] = numpy_helper.from_array(array, name)
            return name
        return self._tensor(name, stored.file, TensorProto.FLOAT, list(array.shape), content)

    def _tensor(self, name: str, file: Path, data_type: int, dims: list[int], content: bytes) -> str:
        """Add an external tensor; any place in the file with equal bytes serves."""
        name = f"{file.name}:{name}"
        if name not in self.tensors:
            tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
            place = self._contents[file].index(content)
            for key, value in (("location", file.name), ("offset", place), ("length", len(content))):
                tensor.external_data.add(key=key, value=str(value))
            self.tensors[name] = tensor
        return name


def _made_float(stored: StoredWeight, given: str, made: str, data_type: int, read_in: _ReadIn) -> list[Any]:
    """Build the nodes that restore float32 or float16 from a stored weight.

    Uses products instead of DequantizeLinear, which ONNX Runtime would recompute in every call.
    """
    if stored.tensor.data_type == data_type:
        return [helper.make_node("Identity", [given], [made])]
    if stored.scale is None:
        return [helper.make_node("Cast", [given], [made], to=data_type)]
    difference, full = f"{made}.integer", made if data_type == TensorProto.FLOAT else f"{made}.full"
    nodes = [helper.make_node("Cast", [given], [difference], to=TensorProto.FLOAT)]
    if stored.zero_point is not None and stored.zero_point.any():
        zero_point = read_in.number(stored, "zero_point", stored.zero_point.astype(np.float32))
        nodes.append(helper.make_node("Sub", [difference, zero_point], [f"{made}.difference"]))
        difference = f"{made}.difference"
    nodes.append(helper.make_node("Mul", [difference, read_in.number(stored, "scale", stored.scale)], [full]))
    if full != made:
        nodes.append(helper.make_node("Cast", [full], [made], to=data_type))
    return nodes
