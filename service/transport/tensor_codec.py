"""Encodes and decodes tensors between numpy arrays and the wire: raw form (gRPC, REST's binary extension) and JSON.

Nothing is padded, truncated or converted: a tensor that does not fit is refused by name. Integers of JSON may be
written as floats (1.0), because some languages write every number so.

Raw form: elements are row-major and little-endian; a BYTES element is its length (uint32, little-endian) and its bytes.
"""

import math
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest, TooLarge, Unsupported
from service.tensors import NUMPY_OF, bytes_array, whole_number

MAX_DIMENSIONS = 32  # numpy's and ONNX Runtime's practical limit
# Product of an array's dimensions other than 0: an array with a dimension of 0 is empty, but numpy limits the rest.
MAX_ELEMENTS = 2**31 - 1
# Python types of JSON elements, by numpy's kind of type; for integer tensors, floats are checked one by one.
JSON_TYPES_OF: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
JSON_SLICE_ELEMENTS = 16_384  # elements encoded in one call, which takes 1 to 3 ms
# Pause between two such calls, so that waiting threads get the interpreter's lock before its switch interval of 5 ms.
LOCK_PAUSE_S = 0.0002
LENGTH_BYTES = 4  # size of a BYTES element's length field
# BYTES elements of one tensor: each is a Python object, and engines copy them all under the interpreter's lock.
MAX_BYTES_ELEMENTS = 2**17


def check_header(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Check a tensor's datatype and shape; return its number of elements.

    Raises:
        InvalidRequest: the datatype is unknown, or the shape is impossible.
    """
    if datatype != "BYTES" and datatype not in NUMPY_OF:
        if datatype == "BF16":
            raise Unsupported(f"tensor {name!r}: BF16 is not offered, no model here takes or gives it")
        raise InvalidRequest(f"tensor {name!r}: unknown datatype {datatype!r}; known are {', '.join(NUMPY_OF)}, BYTES")
    if len(shape) == 1 and 0 <= shape[0] <= MAX_ELEMENTS:  # fast path: most tensors have one dimension
        return shape[0]
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidRequest(f"tensor {name!r}: {len(shape)} dimensions, the limit is {MAX_DIMENSIONS}")
    if shape and min(shape) < 0:
        raise InvalidRequest(f"tensor {name!r}: shape {list(shape)} has a negative dimension")
    count = math.prod(shape)
    if count > MAX_ELEMENTS or (count == 0 and math.prod(filter(None, shape)) > MAX_ELEMENTS):
        raise InvalidRequest(
            f"tensor {name!r}: the dimensions of shape {list(shape)} that are not 0 make more than"
            f" {MAX_ELEMENTS} elements"
        )
    return count


def decode_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> NDArray[Any]:
    """Decode a tensor from its raw form.

    Raises:
        InvalidRequest: the number of bytes does not match the datatype and shape.
        TooLarge: the tensor has too many BYTES elements.
    """
    count = check_header(name, datatype, shape)
    if datatype == "BYTES":
        if count > MAX_BYTES_ELEMENTS:
            raise TooLarge(f"tensor {name!r}: {count} BYTES elements, the limit is {MAX_BYTES_ELEMENTS}")
        elements = bytes_array(_decode_bytes(name, raw, count))
        return elements if len(shape) == 1 else elements.reshape(shape)
    dtype = NUMPY_OF[datatype]
    if len(raw) != count * dtype.itemsize:
        raise InvalidRequest(
            f"tensor {name!r}: {len(raw)} bytes of data, but {datatype} {list(shape)} takes {count * dtype.itemsize}"
        )
    array = np.frombuffer(raw, dtype=dtype).reshape(shape)
    if datatype == "BOOL" and (array.view(np.uint8) > 1).any():
        raise InvalidRequest(f"tensor {name!r}: a BOOL byte is neither 0 nor 1")
    return array


def _decode_bytes(name: str, raw: bytes | memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    position, end = 0, len(raw)
    while position < end:
        start = position + LENGTH_BYTES
        if start > end:
            raise InvalidRequest(f"tensor {name!r}: the data ends within the length of element {len(elements)}")
        position = start + int.from_bytes(raw[position:start], "little")
        if position > end:
            raise InvalidRequest(
                f"tensor {name!r}: element {len(elements)} says {position - start} bytes, {end - start} are left"
            )
        elements.append(bytes(raw[start:position]))
        if len(elements) > count:
            raise InvalidRequest(f"tensor {name!r}: more BYTES elements than the {count} that its shape takes")
    if len(elements) != count:
        raise InvalidRequest(f"tensor {name!r}: {len(elements)} BYTES elements, but its shape takes {count}")
    return elements


def encode_raw(array: NDArray[Any]) -> bytes:
    """Encode an array in raw form."""
    if array.dtype.hasobject:
        elements = array.ravel().tolist()
        return b"".join([len(element).to_bytes(LENGTH_BYTES, "little") + element for element in elements])
    return array.tobytes()


def decode_json(name: str, datatype: str, shape: Sequence[int], data: list[Any]) -> NDArray[Any]:
    """Decode a tensor from JSON data, which is flat or nested by the shape.

    Raises:
        InvalidRequest: the number, type or range of the elements is wrong.
    """
    count = check_header(name, datatype, shape)
    nested = bool(data) and isinstance(data[0], list)
    flat = _flatten(name, data, shape if nested else (count,))
    types = set(map(type, flat))
    if datatype == "BYTES":
        if not types <= {str}:
            raise InvalidRequest(f"tensor {name!r}: BYTES data must be strings")
        return bytes_array([element.encode() for element in flat]).reshape(shape)
    dtype = NUMPY_OF[datatype]
    allowed = JSON_TYPES_OF.get(dtype.kind, {int})
    if dtype.kind in "iu" and float in types and types <= {int, float}:
        flat = [_integer(name, datatype, element) for element in flat]
    elif not types <= allowed:
        wrong = next(element for element in flat if type(element) not in allowed)
        raise InvalidRequest(f"tensor {name!r}: {wrong!r} is not of datatype {datatype}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=dtype)
    except OverflowError:
        raise InvalidRequest(f"tensor {name!r}: a number lies outside the range of {datatype}") from None
    # JSON has no infinity, so an infinity in the array is a number that was too large.
    if dtype.kind == "f" and np.isinf(array).any():
        raise InvalidRequest(f"tensor {name!r}: a number lies outside the range of {datatype}")
    return array.reshape(shape)


def _integer(name: str, datatype: str, element: float) -> int:
    """Return an element of an integer tensor that may be written as a float."""
    if (number := whole_number(element)) is not None:
        return number
    if element.is_integer():
        raise InvalidRequest(
            f"tensor {name!r}: {element!r} is a float of 2**53 or more, which may not be the integer that was meant;"
            " write it without point and exponent"
        )
    raise InvalidRequest(f"tensor {name!r}: {element!r} is not of datatype {datatype}")


def _flatten(name: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    level = [data]
    for axis, size in enumerate(shape):
        for part in level:
            if not isinstance(part, list) or len(part) != size:
                found = f"{len(part)} elements" if isinstance(part, list) else f"{part!r}"
                raise InvalidRequest(f"tensor {name!r}: data has {found} where its shape has {size} (axis {axis})")
        level = list(chain.from_iterable(level))
    return level


def encode_json(name: str, array: NDArray[Any]) -> list[bytes]:
    """Encode an array as JSON, flat and row-major, in pieces that form one list when they are concatenated.

    Each call of the encoder holds the interpreter's lock until it returns, and so would joining many pieces.

    Raises:
        InvalidRequest: JSON cannot represent the values; the client should request binary data.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidRequest(f"output {name!r} has NaN or infinity, which JSON cannot carry; ask for binary data")
    flat, pieces, before = array.ravel(), list[bytes](), b"["
    for start in range(0, flat.size, JSON_SLICE_ELEMENTS):
        elements = flat[start : start + JSON_SLICE_ELEMENTS].tolist()
        if array.dtype.hasobject:
            try:
                elements = [element.decode() for element in elements]
            except UnicodeDecodeError:
                raise InvalidRequest(
                    f"output {name!r} is not UTF-8, which JSON cannot carry; ask for binary data"
                ) from None
        pieces.append(b"".join((before, memoryview(msgspec.json.encode(elements))[1:-1])))
        before = b","
        if start + JSON_SLICE_ELEMENTS < flat.size:
            time.sleep(LOCK_PAUSE_S)
    return [*pieces, b"]" if pieces else b"[]"]
