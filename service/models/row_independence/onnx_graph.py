"""Reads the graph of an ONNX model without its weights."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from proto import onnx_graph_pb2 as pb

# Longest constant that is read. Shapes, axes and scales are shorter; weights are longer and are not needed.
MAX_CONSTANT_ELEMENTS = 256
_MAX_KEPT_TENSOR_BYTES = 16 * 1024
_MAX_KEPT_FIELD_BYTES = 4 * 1024
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
# Field numbers of ModelProto, GraphProto.
_GRAPH, _INITIALIZER = 7, 5
_EXTERNAL = 1
_SCALAR_ATTRIBUTES = {1: "f", 2: "i", 3: "s"}  # by AttributeProto.type
_NUMPY_OF: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    4: np.dtype("<u2"),
    5: np.dtype("<i2"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    12: np.dtype("<u4"),
    13: np.dtype("<u8"),
}


class UnreadableGraph(ValueError):
    """The bytes are not an ONNX model that can be traced; the message says why."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant tensor of the model: its shape, and its elements if they are few."""

    shape: tuple[int, ...]
    array: NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class Reference:
    """An attribute of a function's node that refers to an attribute of the function."""

    name: str


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph."""

    op_type: str
    domain: str
    overload: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]  # int, float, bytes, lists of them, Constant, Graph, Reference

    @property
    def label(self) -> str:
        """The name of the node in reasons."""
        name = self.name or next((output for output in self.outputs if output), "")
        return f"{self.op_type} {name!r}"

    def subgraphs(self) -> Iterator["Graph"]:
        """Yield the graphs among the attributes."""
        for value in self.attributes.values():
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, Graph):
                    yield each


# Sizes, names of sizes, and None for a size without a name.
DeclaredShape = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Operators in topological order, with inputs, outputs and constants.

    Attributes:
        nodes: the operators.
        inputs: declared shapes by name, None for a tensor without one; a dynamic dimension is its name, or None if it
            has none.
        input_types: element types of the inputs by name, as numbers of ONNX's `TensorProto.DataType`.
        outputs: names of the outputs.
        constants: the initializers, by name.
    """

    nodes: tuple[Node, ...]
    inputs: dict[str, DeclaredShape | None]
    input_types: dict[str, int]
    outputs: tuple[str, ...]
    constants: dict[str, Constant]


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model defines."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    defaults: dict[str, Any]
    nodes: tuple[Node, ...]
    versions: dict[str, int]


@dataclass(frozen=True, slots=True)
class Model:
    """A whole model.

    Attributes:
        ir_version: version of ONNX's file format.
        versions: versions of the operator sets by domain; the standard one has the domain "".
        graph: the main graph.
        functions: the model's own functions by domain, name and overload.
    """

    ir_version: int
    versions: dict[str, int]
    graph: Graph
    functions: dict[tuple[str, str, str], Function] = field(default_factory=dict)


def read_model(data: bytes | memoryview) -> Model:
    """Read a model file.

    Large initializers are cut out before the rest is decoded, so a file with gigabytes of weights costs no memory.

    Raises:
        UnreadableGraph: the bytes are not an ONNX model.
    """
    view = memoryview(data).cast("B")
    try:
        message = pb.ModelProto()
        message.ParseFromString(b"".join(_without_weights(view, _GRAPH)))
    except (DecodeError, IndexError, ValueError, RecursionError) as error:
        raise UnreadableGraph(f"the file is not an ONNX model: {error}") from None
    if not message.HasField("graph"):
        raise UnreadableGraph("the file is not an ONNX model: it has no graph")
    functions = {
        (_domain(each.domain), each.name, each.overload): Function(
            tuple(each.input),
            tuple(each.output),
            {attribute.name: _attribute(attribute) for attribute in each.attribute_proto},
            tuple(map(_node, each.node)),
            _versions(each.opset_import),
        )
        for each in message.functions
    }
    return Model(message.ir_version, _versions(message.opset_import), _graph(message.graph), functions)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _versions(imports: Iterable[pb.OperatorSetIdProto]) -> dict[str, int]:
    return {_domain(each.domain): each.version for each in imports}


def _graph(message: pb.GraphProto) -> Graph:
    inputs: dict[str, DeclaredShape | None] = {}
    for each in message.input:
        tensor = each.type.tensor_type
        inputs[each.name] = (
            tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim)
            if each.type.HasField("tensor_type") and tensor.HasField("shape")
            else None
        )
    constants = {each.name: _constant(each) for each in message.initializer}
    for sparse in message.sparse_initializer:
        constants[sparse.values.name] = Constant(tuple(sparse.dims), None)
    return Graph(
        tuple(map(_node, message.node)),
        inputs,
        {each.name: each.type.tensor_type.elem_type for each in message.input},
        tuple(each.name for each in message.output),
        constants,
    )


def _node(message: pb.NodeProto) -> Node:
    return Node(
        message.op_type,
        _domain(message.domain),
        message.overload,
        message.name,
        tuple(message.input),
        tuple(message.output),
        {each.name: _attribute(each) for each in message.attribute},
    )


def _attribute(message: pb.AttributeProto) -> Any:
    if message.ref_attr_name:
        return Reference(message.ref_attr_name)
    for kind, name in _SCALAR_ATTRIBUTES.items():  # some writers omit a default value
        if message.HasField(name) or message.type == kind:
            return getattr(message, name)
    if message.HasField("t"):
        return _constant(message.t)
    if message.HasField("g"):
        return _graph(message.g)
    if message.graphs:
        return list(map(_graph, message.graphs))
    return list(message.ints) or list(message.floats) or list(message.strings)


def _constant(message: pb.TensorProto) -> Constant:
    shape = tuple(message.dims)
    dtype = _NUMPY_OF.get(message.data_type)
    if dtype is None or np.prod(shape) > MAX_CONSTANT_ELEMENTS or message.data_location == _EXTERNAL:
        return Constant(shape, None)
    if message.HasField("raw_data"):
        elements = np.frombuffer(message.raw_data, dtype)
    elif dtype == np.float16:  # stored as integers with the same bits
        elements = np.array(message.int32_data, np.uint16).view(np.float16)
    else:
        typed = message.float_data or message.int32_data or message.int64_data
        elements = np.array(typed or message.double_data or message.uint64_data).astype(dtype)
    if elements.size != np.prod(shape):
        raise UnreadableGraph(f"initializer {message.name!r} has {elements.size} elements for the shape {shape}")
    return Constant(shape, elements.reshape(shape))


def _without_weights(message: memoryview, *path: int) -> Iterator[bytes | memoryview]:
    """Yield the encoded fields of a message without the data of large tensors; `path` leads to the graph."""
    for number, start, content, end in _fields(message):
        if content is None or number != (path[0] if path else _INITIALIZER):
            yield message[start:end]
        elif path:
            yield from _delimited(number, b"".join(_without_weights(message[content:end], *path[1:])))
        elif end - content > _MAX_KEPT_TENSOR_BYTES:
            tensor = message[content:end]
            short = [tensor[a:d] for _, a, _, d in _fields(tensor) if d - a <= _MAX_KEPT_FIELD_BYTES]
            yield from _delimited(number, b"".join(short))
        else:
            yield message[start:end]


def _delimited(number: int, content: bytes) -> Iterator[bytes]:
    yield _varint_bytes(number << 3 | _BYTES)
    yield _varint_bytes(len(content))
    yield content


def _varint_bytes(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | None, int]]:
    """Yield number, start, start of length-delimited content, and end of each field of an encoded message."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        kind, content = tag & 7, None
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _FIXED_64:
            position += 8
        elif kind == _FIXED_32:
            position += 4
        elif kind == _BYTES:
            length, content = _varint(message, position)
            position = content + length
        else:
            raise UnreadableGraph("the file is not an ONNX model: it has a field of an unknown kind")
        if position > len(message):
            raise UnreadableGraph("the file is not an ONNX model: it ends within a field")
        yield tag >> 3, start, content, position


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise UnreadableGraph("the file is not an ONNX model: a number in it is too long")
