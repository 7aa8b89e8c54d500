"""Property tests of the tensor codecs: valid tensors survive a round trip, others are refused."""

import json
import struct
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest, Unsupported
from service.tensors import DATATYPE_OF_NUMPY, NUMPY_OF, bytes_array
from service.transport.tensor_codec import decode_json, decode_raw, encode_json, encode_raw

shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
any_array = st.sampled_from(sorted(NUMPY_OF)).flatmap(lambda name: arrays.arrays(NUMPY_OF[name], shapes))


@st.composite
def bytes_tensors(draw: st.DrawFn) -> Any:
    """Draw BYTES tensors of any shape and content."""
    shape = draw(shapes)
    size = int(np.prod(shape))
    return bytes_array(draw(st.lists(st.binary(max_size=9), min_size=size, max_size=size))).reshape(shape)


@given(any_array | bytes_tensors())
def test_the_raw_form_survives_a_round_trip(array: Any) -> None:
    """Every type and shape is equal to the bit."""
    datatype = DATATYPE_OF_NUMPY[array.dtype]
    back = decode_raw("x", datatype, array.shape, encode_raw(array))
    assert back.shape == array.shape
    assert back.dtype == array.dtype
    assert encode_raw(back) == encode_raw(array)


@given(any_array, st.booleans())
def test_the_json_form_survives_a_round_trip(array: Any, nested: bool) -> None:
    """Data may be flat or nested; values that JSON cannot hold are refused."""
    datatype = DATATYPE_OF_NUMPY[array.dtype]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        with pytest.raises(InvalidRequest, match="ask for binary data"):
            encode_json("x", array)
        return
    data = array.tolist() if nested and array.ndim else json.loads(b"".join(encode_json("x", array)))
    back = decode_json("x", datatype, array.shape, data)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@given(any_array, st.binary(min_size=1, max_size=3))
def test_raw_data_of_the_wrong_length_is_refused(array: Any, more: bytes) -> None:
    """The error names the tensor and both sizes."""
    datatype, raw = DATATYPE_OF_NUMPY[array.dtype], encode_raw(array)
    for wrong in (raw + more, raw[: -len(more)] if len(raw) >= len(more) else None):
        if wrong is not None:
            with pytest.raises(InvalidRequest, match=f"tensor 'x': {len(wrong)} bytes of data"):
                decode_raw("x", datatype, array.shape, wrong)


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_a_bytes_tensor_or_an_error(raw: bytes, count: int) -> None:
    """The only error is InvalidRequest; an accepted tensor encodes to the same bytes."""
    try:
        array = decode_raw("x", "BYTES", [count], raw)
    except InvalidRequest as error:
        assert "tensor 'x'" in str(error)
    else:
        assert encode_raw(array) == raw


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8), shapes
)
def test_any_json_is_a_tensor_or_an_error(data: Any, shape: tuple[int, ...]) -> None:
    """Each datatype gives an array of that type and shape, or InvalidRequest."""
    data = data if isinstance(data, list) else [data]
    for datatype in (*NUMPY_OF, "BYTES"):
        try:
            array = decode_json("x", datatype, shape, data)
        except InvalidRequest as error:
            assert "tensor 'x'" in str(error)
        else:
            assert (DATATYPE_OF_NUMPY[array.dtype], array.shape) == (datatype, shape)


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("INT8", [128], "outside the range of INT8"),
        ("UINT8", [-1], "outside the range of UINT8"),
        ("UINT64", [2**64], "outside the range of UINT64"),
        ("INT64", [1.5], "1.5 is not of datatype INT64"),
        ("INT64", [2.0**53], "9007199254740992.0 is a float of 2\\*\\*53 or more"),
        ("UINT64", [1e19], "1e\\+19 is a float of 2\\*\\*53 or more"),
        ("INT64", [float("inf")], "inf is not of datatype INT64"),
        ("INT8", [200.0], "outside the range of INT8"),
        ("BOOL", [1.0], "1.0 is not of datatype BOOL"),
        ("BYTES", [1.0], "BYTES data must be strings"),
        ("INT64", [True], "True is not of datatype INT64"),
        ("BOOL", [1], "1 is not of datatype BOOL"),
        ("FP16", [70000], "outside the range of FP16"),
        ("FP32", [1e39], "outside the range of FP32"),
        ("FP32", [None], "None is not of datatype FP32"),
        ("BYTES", [1], "BYTES data must be strings"),
        ("FP32", [[1.0]], "is not of datatype|has"),
    ],
)
def test_json_values_are_never_converted(datatype: str, data: list[Any], expected: str) -> None:
    """Wrong types and values out of range have errors of their own."""
    with pytest.raises(InvalidRequest, match=expected):
        decode_json("x", datatype, [1], data)


@pytest.mark.parametrize("shape", [[0, 10**20], [0, 2**62, 2**62], [2**31], [0, 2**16, 2**16]])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_impossible_shapes_are_refused(shape: list[int], datatype: str) -> None:
    """Empty arrays are no exception."""
    for decode in (lambda: decode_raw("x", datatype, shape, b""), lambda: decode_json("x", datatype, shape, [])):
        with pytest.raises(InvalidRequest, match=f"'x': the dimensions of shape .*{shape[-1]}.* 2147483647 elements"):
            decode()
    assert decode_raw("x", datatype, [0, 2**30], b"").shape == (0, 2**30)


def test_unsupported_datatypes_and_values_are_named() -> None:
    """Examples are BF16, unknown names, too many dimensions, and invalid booleans."""
    with pytest.raises(Unsupported, match="BF16"):
        decode_raw("x", "BF16", [1], b"\0\0")
    with pytest.raises(InvalidRequest, match="33 dimensions, the limit is 32"):
        decode_raw("x", "INT8", [1] * 33, b"\0")
    with pytest.raises(InvalidRequest, match="neither 0 nor 1"):
        decode_raw("x", "BOOL", [1], b"\2")
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        encode_json("x", bytes_array([b"\xff"]))
    assert encode_raw(bytes_array([b"ab"])) == struct.pack("<I", 2) + b"ab"
