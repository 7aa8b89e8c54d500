"""Invented rows reveal dependences that a proof might have missed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.models.row_independence import TrialStopped, try_rows
from service.tensors import Arrays, TensorSpec

MIB = 2**20


def tried(
    compute: Callable[[Any], Any],
    datatype: str = "FP32",
    shape: tuple[int, ...] = (-1, 16),
    **settings: Any,
) -> str | None:
    """Run the trial on a graph with one input and one output."""

    def run(feeds: Arrays) -> Arrays:
        return {"y": compute(feeds["x"])}

    bounds = {"budget_s": 600.0, "max_bytes": 64 * MIB} | settings
    return try_rows([TensorSpec("x", datatype, shape)], [TensorSpec("y", datatype, (-1,))], run, **bounds)


def mean_over_longest(ids: Any) -> Any:
    """A mean that depends on the longest row."""
    lengths = (ids > 1).sum(axis=1)
    return ids.sum(axis=1) / (1.0 + lengths.max())


def one_scale(x: Any) -> Any:
    """Quantization by the largest number of all rows."""
    scale = max(np.abs(x).max() / 127, 1e-30)
    return np.round(x / scale).astype(np.int8) * scale


def smoothed(x: Any) -> Any:
    """Rows that are moved a little towards the previous row."""
    result = x.copy()
    result[1:] += 0.01 * (x[:-1] - x[1:])
    return result


def padded_to_longest(texts: Any) -> Any:
    """Results padded to the longest text of all rows."""
    words = [text.split() for text in texts[:, 0]]
    longest = max(map(len, words))
    return np.array([each + [""] * (longest - len(each)) for each in words], object)


@pytest.mark.parametrize(
    ("compute", "datatype"),
    [
        (lambda x: (x - x.mean()) / x.std(), "FP32"),
        (lambda x: (x - x.min()) / max(1, int(x.max()) - int(x.min())), "UINT8"),
        (lambda x: x / 255 if x.max() > 1 else x, "FP32"),
        (mean_over_longest, "INT64"),
        (one_scale, "FP32"),
        (smoothed, "FP32"),
        (lambda x: x[::-1], "FP32"),
    ],
)
def test_rows_that_depend_on_each_other_are_found(compute: Callable[[Any], Any], datatype: str) -> None:
    """Dependences on scale, length, order and number of the rows are found."""
    assert tried(compute, datatype) == "output 'y' of a row depends on the other rows"


def test_a_result_that_counts_the_rows_is_found() -> None:
    """A result that counts rows changes beside copies of the same row."""
    assert tried(lambda x: x * len(x)) == "output 'y' of a row changes with the number of rows"


def test_rounding_that_a_graph_magnifies_is_no_dependence() -> None:
    """The row changes as much beside copies of itself as beside others, so rounding explains it."""
    assert tried(lambda x: x.mean(axis=1) * (1 + 0.01 * np.sin(len(x)))) is None


def test_texts_of_several_words_give_away_padding_to_the_longest() -> None:
    """Padding to the longest text of a call is found, which takes texts of several words."""
    assert tried(padded_to_longest, "BYTES", (-1, 1)) == "output 'y' of a row has another shape in a batch"


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "UINT8", "INT64", "BOOL"])
def test_rows_that_keep_to_themselves_pass(datatype: str) -> None:
    """Independent rows pass, with results that differ only by rounding."""
    assert tried(lambda x: x.astype(np.float32).sum(axis=1) * np.float32(1 + 1e-7 * len(x)), datatype) is None


def test_integers_are_tried_as_far_as_the_graph_takes_them() -> None:
    """A table of 50 rows refuses larger ids; the ids that it accepts reveal the dependence."""
    largest = []

    def look_up(ids: Any) -> Any:
        largest.append(int(ids.max()))
        table = np.arange(50, dtype=np.float32)
        if ids.max() >= 50:
            raise IndexError("no such row")
        return table[ids]

    assert tried(look_up, "INT64") is None
    assert 1 in largest and max(largest) >= 50


def test_results_without_a_finite_number_show_nothing() -> None:
    """Results that are all NaN are equal but show nothing."""
    assert tried(lambda x: x * np.nan) == "output 'y' of random rows has no finite number"


def test_a_graph_that_refuses_all_rows_is_not_proved() -> None:
    """The reason is the graph's error."""

    def refuse(x: Any) -> Any:
        raise ValueError("not these")

    assert tried(refuse) == "it refuses random rows: not these"


def test_rows_that_are_refused_together_alone_are_found() -> None:
    """An example is a graph whose shapes fit only one row."""

    def one_at_a_time(x: Any) -> Any:
        if len(x) > 1:
            raise ValueError("one at a time")
        return x

    assert tried(one_at_a_time) == "it refuses rows in one call that it answers in separate calls: one at a time"


def test_a_trial_ends_when_it_is_stopped() -> None:
    """A trial can be stopped by a call, for example at a deadline, or between calls."""

    def never_ends(x: Any) -> Any:
        raise TrialStopped

    assert tried(never_ends) == "it did not answer random rows in time"
    assert tried(lambda x: x, stop=lambda: True) == "it did not answer random rows in time"
    assert tried(lambda x: x, budget_s=-1.0) == "it did not answer random rows in time"


def test_what_was_shown_before_the_end_decides() -> None:
    """The results before the stop decide."""
    calls = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 20

    assert tried(lambda x: x, stop=stop) is None


def test_rows_are_bounded_in_bytes() -> None:
    """Rows that would exceed the bound are not made."""
    assert tried(lambda x: x, shape=(-1, 10_000), max_bytes=1000) == ("its random rows would take more than 1000 bytes")
