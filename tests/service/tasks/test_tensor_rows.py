"""Tensors in, tensors out, without a graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.tasks.tensor_rows import TensorRows, batching_problem
from service.tensors import Arrays, TensorSpec, bytes_array


def task_of(datatype: str, *shape: int) -> TensorRows:
    """One input, one output, at most four rows a call."""
    specs = [TensorSpec("x", datatype, shape)], [TensorSpec("y", datatype, shape)]
    return TensorRows(*specs, max_rows=4, batched=shape[0] == -1)


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


def batching_problem_of(
    compute: Callable[[Any], Any], datatype: str = "FP32", shape: tuple[int, ...] = (-1, -1)
) -> Any:
    """Of a graph of one input and one output."""

    def run(feeds: Arrays) -> Arrays:
        return {"y": compute(feeds["x"])}

    return batching_problem([TensorSpec("x", datatype, shape)], [TensorSpec("y", datatype, shape)], run)


def large_only(x: Any) -> Any:
    """Refuses small images."""
    if x.shape[1] < 30:
        raise RuntimeError("smaller than the kernel")
    return x.mean(axis=1)


@pytest.mark.parametrize(
    ("compute", "datatype"),
    [
        (lambda x: 2 * x, "FP32"),
        (lambda x: (x + 0.001).astype(np.float16), "FP16"),
        (lambda x: x.argmax(axis=1), "INT64"),
        (lambda x: x * np.nan, "FP32"),
        (lambda x: x == "1", "BYTES"),
        (lambda x: ~x, "BOOL"),
        (large_only, "FP32"),
        (lambda x: (x / abs(x).max() * 127).round() * (abs(x).max() / 127), "FP32"),  # quantized for each call
    ],
)
def test_rows_that_are_computed_by_themselves_may_share_a_call(compute: Callable[[Any], Any], datatype: str) -> None:
    """Of any type, and also where not every size is taken."""
    assert batching_problem_of(compute, datatype) is None


@pytest.mark.parametrize(
    ("compute", "shape", "expected"),
    [
        (lambda x: x.cumsum(axis=0), (-1, 3), "output 'y' of a row depends on the other rows"),
        (lambda x: x - x.mean(axis=0), (-1, -1), "output 'y' of a row depends on the other rows"),
        (lambda x: x.sum(axis=0), (-1, 3), "output 'y' of a row depends on the other rows"),
        (lambda x: x.reshape(-1, 7), (-1, 3), "it refuses invented rows: cannot reshape"),
        (lambda x: x, (2, 3), "not every tensor has a first dimension of any size"),
        (lambda x: x, (-1, 2**21), "its rows are too large to be invented"),
    ],
)
def test_rows_that_are_not_must_not(compute: Callable[[Any], Any], shape: tuple[int, ...], expected: str) -> None:
    """And what cannot be tried is not either."""
    assert expected in batching_problem_of(compute, shape=shape)
