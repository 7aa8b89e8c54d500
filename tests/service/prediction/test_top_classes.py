"""The best classes of an output, as Triton's classification extension writes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest, TooLarge
from service.prediction.top_classes import MAX_CLASSES, SLICE_ELEMENTS, check_classes, is_short, top_classes
from service.tensors import TensorSpec

LABELLED = TensorSpec("p", "FP32", (-1, 3), labels=("cat", "dog", "eel"))
VECTOR, ROWS = TensorSpec("v", "FP32", (3,)), TensorSpec("r", "FP32", (-1,))


@pytest.mark.parametrize(
    ("array", "count", "spec", "expected"),
    [
        (np.array([[0.1, 0.7, 0.2]], np.float32), 2, LABELLED, [["0.700000:1:dog", "0.200000:2:eel"]]),
        (
            np.array([[0.1, 0.7, 0.2]], np.float32),
            9,
            LABELLED,
            [["0.700000:1:dog", "0.200000:2:eel", "0.100000:0:cat"]],
        ),
        (np.array([0.25, 4, 3], np.float32), 1, VECTOR, ["4.000000:1"]),
        (np.array([0.25, 4], np.float32), 1, ROWS, [["0.250000:0"], ["4.000000:0"]]),
        (np.array([[3, 255, 3]], np.uint8), 3, TensorSpec("i", "UINT8", (-1, 3)), [["255:1", "3:0", "3:2"]]),
        (np.array([[-(2**63), 0]]), 2, TensorSpec("i", "INT64", (-1, 2)), [["0:1", f"{-(2**63)}:0"]]),
        (np.array([[np.nan, -np.inf, 1]], np.float16), 3, TensorSpec("h", "FP16", (-1, 3)), None),
        (np.zeros((0, 3), np.float32), 2, LABELLED, np.zeros((0, 2)).tolist()),
        (np.ones((2, 2, 2)), 1, TensorSpec("d", "FP64", (-1, 2, 2)), [[["1.000000:0"]] * 2] * 2),
    ],
)
def test_classes_are_written_best_first(
    array: np.ndarray,
    count: int,
    spec: TensorSpec,
    expected: list | None,  # type: ignore[type-arg]
) -> None:
    """The classes are those of the last axis; of equal values the lower index comes first, NaN last."""
    ranked = top_classes(array, count, spec)
    assert ranked.dtype == object
    if expected is None:
        assert ranked.tolist() == [[b"1.000000:2", b"nan:0", b"-inf:1"]]
        return
    written = np.vectorize(bytes.decode, otypes=[object])(ranked).tolist() if ranked.size else ranked.tolist()
    assert written == expected


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.integers(1, 40))
def test_the_order_is_that_of_a_stable_sort(values: list[int], count: int) -> None:
    """Python's own sort is the oracle."""
    order = sorted(range(len(values)), key=lambda index: -values[index])[:count]
    ranked = top_classes(np.array([values], np.int32), count, TensorSpec("x", "INT32", (-1, -1)))
    assert ranked.tolist() == [[b"%d:%d" % (values[index], index) for index in order]]


def test_a_few_of_many_classes_are_found_without_sorting_all() -> None:
    """The result is that of a sort, ties included."""
    values = np.random.default_rng(1).integers(0, 50, (3, 2 * SLICE_ELEMENTS)).astype(np.float32)
    ranked = top_classes(values, 40, TensorSpec("x", "FP32", (-1, -1)))
    for row, written in zip(values.tolist(), ranked.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda index: -row[index])[:40]
        assert written == [b"%f:%d" % (row[index], index) for index in order]
    assert not is_short(values, 40)
    assert is_short(np.zeros((2, 1000)), 5)


def test_what_has_no_classes_is_refused() -> None:
    """Texts and truth values are not ranked, a number alone has no axis, and the answer's size is bounded."""
    for datatype in ("BYTES", "BOOL"):
        with pytest.raises(InvalidRequest, match=f"'t': classification is for numbers, the output is {datatype}"):
            check_classes(TensorSpec("t", datatype, (-1,)))
    with pytest.raises(InvalidRequest, match="the output is one number"):
        top_classes(np.array(1.0), 1, TensorSpec("s", "FP64", ()))
    with pytest.raises(TooLarge, match=f"the limit of an answer is {MAX_CLASSES}"):
        top_classes(np.zeros((2, MAX_CLASSES), np.float32), MAX_CLASSES, TensorSpec("x", "FP32", (-1, -1)))
