"""Tensors in, tensors out, without a graph."""

from typing import Any

import numpy as np
import pytest

from service.tasks.tensor_rows import TensorRows
from service.tensors import TensorSpec, bytes_array


def task_of(datatype: str, *shape: int) -> TensorRows:
    """One input, one output, at most four rows a call."""
    return TensorRows([TensorSpec("x", datatype, shape)], [TensorSpec("y", datatype, shape)], max_rows=4)


@pytest.mark.parametrize(
    ("task", "array", "lengths"),
    [
        (task_of("FP32", -1, 1000), np.ones((2, 1000), np.float32), [1]),
        (task_of("FP32", -1, -1), np.ones((2, 256), np.float32), [1]),
        (task_of("FP32", -1, -1), np.ones((2, 257), np.float32), [2]),
        (task_of("FP32", -1, -1), np.ones((6, 1024), np.float32), [4, 4]),
        (task_of("FP32", 3, -1), np.ones((3, 1024), np.float32), [12]),
        (task_of("BYTES", -1), bytes_array([b"x", b"y"]), [1]),
        (task_of("BYTES", -1), bytes_array([b"x" * 10_000, b"y"]), [5]),
    ],
)
def test_the_length_of_rows_says_how_large_they_are(task: TensorRows, array: Any, lengths: list[int]) -> None:
    """In KiB, where that is not the same for all."""
    assert [item.length for item in task.items({"x": array})] == lengths
