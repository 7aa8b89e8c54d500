"""Requests become items and calls, and outputs become answers, without a graph."""

from typing import Any

import numpy as np
import pytest

from service.tasks.raw_tensors import RawTensors
from service.tensors import TensorSpec, bytes_array


def task_of(datatype: str, *shape: int) -> RawTensors:
    """Make a task with one input, one output, and at most four rows in a call."""
    specs = [TensorSpec("x", datatype, shape)], [TensorSpec("y", datatype, shape)]
    return RawTensors(*specs, max_rows=4, joined=shape[0] == -1)


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
def test_the_length_of_rows_says_how_large_they_are(task: RawTensors, array: Any, lengths: list[int]) -> None:
    """The length is the row's size in KiB if rows differ in size, and 1 otherwise."""
    assert [item.length for item in task.items({"x": array})] == lengths


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ({"a": (3, 2), "b": (3, 5)}, [3]),
        ({"a": (9, 2), "b": (9, 5)}, [4, 4, 1]),
        ({"a": (9, 2), "b": (1, 5)}, [1]),  # computed whole
        ({"a": (0, 2), "b": (0, 5)}, [1]),  # the same
        ({"a": (9, 2), "b": (9, 5), "c": (9,)}, [1]),  # the same
    ],
)
def test_only_rows_that_belong_together_are_split(shapes: dict[str, tuple[int, ...]], rows: list[int]) -> None:
    """A request stays whole if its inputs differ in their rows, it has none, or it sets an optional input."""
    specs = [TensorSpec(name, "FP32", (-1, -1)) for name in ("a", "b")]
    optional = [TensorSpec("c", "FP32", (-1,))]
    task = RawTensors(specs, [TensorSpec("y", "FP32", (-1, -1))], max_rows=4, joined=True, optional_inputs=optional)
    feeds = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    items = task.items(feeds)
    assert [item.rows for item in items] == rows
    assert sum(len(item.arrays["a"]) for item in items) == len(feeds["a"])
    shared = len({item.batch_key for item in [*items, *task.items(feeds)]}) == 1
    assert shared == (rows != [1])


def test_a_request_whose_sizes_differ_where_the_proof_takes_them_for_equal_stays_whole() -> None:
    """Requests with equal sizes share calls, others are computed alone."""
    specs = [TensorSpec(name, "FP32", (-1, -1)) for name in ("a", "b")]
    outputs = [TensorSpec("y", "FP32", (-1, -1))]
    task = RawTensors(specs, outputs, max_rows=4, joined=True, equal_sizes=[[("a", 1), ("b", 1)]])
    alike, different = ({"a": np.ones((6, 4), np.float32), "b": np.ones((6, n), np.float32)} for n in (4, 2))
    assert [item.rows for item in task.items(alike)] == [4, 2]
    (whole,) = task.items(different)
    assert (len(whole.arrays["a"]), whole.batch_key == task.items(different)[0].batch_key) == (6, False)


def test_a_scalar_has_no_rows() -> None:
    """An input without a declared shape accepts a scalar, even if rows are declared independent."""
    spec = TensorSpec("x", "FP32", (-1,), any_rank=True)
    task = RawTensors([spec], [TensorSpec("y", "FP32", (-1,))], max_rows=4, joined=True)
    (item,) = task.items({"x": np.array(2.0, np.float32)})
    assert (item.rows, item.arrays["x"].shape) == (1, ())
    assert [each.rows for each in task.items({"x": np.ones((6, 2), np.float32)})] == [4, 2]


def test_requests_of_unproved_graphs_never_share_a_call() -> None:
    """This holds for any number of rows."""
    specs = [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 3))]
    task = RawTensors(*specs, max_rows=4, joined=False)
    items = [item for _ in range(3) for item in task.items({"x": np.ones((100, 3), np.float32)})]
    assert len({item.batch_key for item in items}) == len(items) == 3
