"""Numbers of float32 arrays are written as JSON that gives the same numbers when it is read."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from service.transport.float_json import CHARACTERS, json_of_rows, json_rows


def read_back(document: bytes) -> NDArray[np.float32]:
    """Read JSON as other programs do: each number as a double, rounded to float32."""
    return np.array(json.loads(document), dtype=np.float64).astype(np.float32)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_any_array_is_read_back(array: NDArray[np.float32]) -> None:
    """Every finite number comes back with its sign, including zeros and subnormal numbers; others become null."""
    document = json_of_rows(array)
    expected = [[value if math.isfinite(value) else None for value in row] for row in array.tolist()]
    found = json.loads(document)
    assert [[None if value is None else np.float32(value) for value in row] for row in found] == expected
    if np.isfinite(array).all():
        assert (np.signbit(read_back(document)) == np.signbit(array)).all()


def test_every_exponent_and_its_neighbours_are_read_back() -> None:
    """Powers of two and of ten with the numbers beside them, where a digit too many or too few would show."""
    powers = [2.0**exponent for exponent in range(-126, 128)] + [10.0**exponent for exponent in range(-37, 39)]
    middle = np.array(powers, dtype=np.float32)
    near = [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))]
    array = np.concatenate([*near, -middle, np.array([0.0, -0.0], np.float32)])
    array = array[np.isfinite(array)][None]
    assert np.array_equal(read_back(json_of_rows(array)), array)


def test_random_bits_are_read_back() -> None:
    """Numbers of all sizes, drawn by their bits."""
    bits = np.random.default_rng(5).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    normal = values[np.isfinite(values) & (np.abs(values) >= np.finfo(np.float32).tiny)][None]
    assert normal.size > 190_000
    assert np.array_equal(read_back(json_of_rows(normal)), normal)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 5), (32, 384)])
def test_a_number_takes_sixteen_characters(shape: tuple[int, int]) -> None:
    """The size follows from the shape, and rows are views of one buffer: no object is made for a number."""
    array = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    rows = json_rows(array)
    assert {len(row) for row in rows} == {CHARACTERS * shape[1] - 1}
    assert len({id(row.obj) for row in rows if isinstance(row, memoryview)}) == 1
    assert np.array_equal(read_back(json_of_rows(array)), array)


def test_arrays_of_other_layouts_are_written_by_their_elements() -> None:
    """A narrower view and a transposed array have the numbers that indexing gives."""
    array = np.random.default_rng(7).standard_normal((6, 8)).astype(np.float32)
    for each in (array[:, :3], array.T, array[::2]):
        assert np.array_equal(read_back(json_of_rows(each)), each)
