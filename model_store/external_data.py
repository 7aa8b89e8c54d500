"""Finds the files that an ONNX graph reads weights from, without decoding the graph.

Reads only the fields of `onnx.proto` named below and skips all others, so that a graph of 2 GB costs no memory and
little time. Bytes that cannot be parsed end the search; ONNX Runtime then refuses the graph with its own message.
"""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5  # wire types
# For each message: the numbers of the fields that lead to tensors, and the message in each field.
FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}


class _Span(NamedTuple):
    """The part of the file that contains one message."""

    message: str
    start: int
    end: int


def external_locations(graph: memoryview) -> set[str]:
    """Return the locations of a graph's external tensors (`external_data` of `TensorProto`), unchecked.

    Args:
        graph: a serialized `ModelProto`.

    Returns:
        The locations, which are relative paths if the graph follows ONNX's rules.
    """
    found: set[str] = set()
    pending = [_Span("ModelProto", 0, len(graph))]
    while pending:
        message, start, end = pending.pop()
        if message == "StringStringEntryProto":
            entry = {number: bytes(graph[first:last]) for number, first, last in _byte_fields(graph, start, end)}
            if entry.get(1) == b"location":
                found.add(entry.get(2, b"").decode(errors="replace"))
            continue
        inner = FIELDS[message]
        pending += [
            _Span(inner[number], first, last)
            for number, first, last in _byte_fields(graph, start, end)
            if number in inner
        ]
    return found


def _byte_fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each length-delimited field of a message; stop at bytes that are not a field."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            _, at = _varint(data, at, end)
        elif wire_type == FIXED_64:
            at += 8
        elif wire_type == FIXED_32:
            at += 4
        elif wire_type == BYTES:
            length, at = _varint(data, at, end)
            if at + length > end:
                return
            yield number, at, at + length
            at += length
        else:
            return


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Read a varint; return its value and the position after it, or the message's end if it is truncated."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            return 0, end
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return 0, end
