"""Small ONNX graphs encoded by hand: the serving install has no tools to build one."""

from collections.abc import Mapping, Sequence

# Numbers of element types in onnx.proto.
FLOAT, INT64, FLOAT16 = 1, 7, 10

_Node = tuple[str, list[str], list[str], dict[str, int]]  # operator, inputs, outputs, attributes
_Tensors = Mapping[str, tuple[int, tuple[int | None, ...]]]  # by name: element type and shape, None for any size


def identity_graph() -> bytes:
    """Return the smallest ONNX model: y = x, one float."""
    return _model([("Identity", ["x"], ["y"], {})], {"x": (FLOAT, (1,))}, {"y": (FLOAT, (1,))})


def gather_graph(count: int, element_type: int, rank: int, second_axis: int | None = None) -> bytes:
    """Return an ONNX model that gathers rows of several tensors: y_i = x_i[rows], for i from 0 to `count` - 1.

    Args:
        count: number of tensors.
        element_type: element type of all tensors, as a number of onnx.proto.
        rank: number of dimensions of each tensor, all of any size.
        second_axis: another axis to gather from, by the input `places`: for 2, y_i = x_i[rows][:, :, places].
    """
    tensor, numbers = (element_type, (None,) * rank), range(count)
    order, gathered = (INT64, (None,)), "y" if second_axis is None else "gathered"
    nodes: list[_Node] = [("Gather", [f"x_{number}", "rows"], [f"{gathered}_{number}"], {}) for number in numbers]
    inputs = {f"x_{number}": tensor for number in numbers} | {"rows": order}
    if second_axis is not None:
        inputs["places"] = order
        nodes += [
            ("Gather", [f"gathered_{number}", "places"], [f"y_{number}"], {"axis": second_axis}) for number in numbers
        ]
    return _model(nodes, inputs, {f"y_{number}": tensor for number in numbers})


def _model(nodes: Sequence[_Node], inputs: _Tensors, outputs: _Tensors) -> bytes:
    """Encode an ONNX model as the protobuf message of onnx.proto."""
    graph = b"".join(_field(1, _node(*each)) for each in nodes)
    graph += _field(2, "graph")
    graph += b"".join(_field(11, _value(name, *tensor)) for name, tensor in inputs.items())
    graph += b"".join(_field(12, _value(name, *tensor)) for name, tensor in outputs.items())
    return _field(1, 9) + _field(7, graph) + _field(8, _field(2, 17))  # IR version 9, operator set 17


def _node(operator: str, inputs: list[str], outputs: list[str], attributes: dict[str, int]) -> bytes:
    # 2 is the attribute type INT.
    encoded = (_field(1, name) + _field(3, number) + _field(20, 2) for name, number in attributes.items())
    parts = [*(_field(1, name) for name in inputs), *(_field(2, name) for name in outputs), _field(4, operator)]
    return b"".join([*parts, *(_field(5, each) for each in encoded)])


def _value(name: str, element_type: int, sizes: tuple[int | None, ...]) -> bytes:
    shape = b"".join(_field(1, b"" if size is None else _field(1, size)) for size in sizes)
    return _field(1, name) + _field(2, _field(1, _field(1, element_type) + _field(2, shape)))


def _field(number: int, content: bytes | str | int) -> bytes:
    """Encode a protobuf field: varints for whole numbers, length-delimited for all else."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
