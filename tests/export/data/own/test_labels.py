"""Kinds of problems, found from columns as people write them."""

import math
from typing import Any

import pytest

from export.data.own.labels import (
    MAX_NUMERIC_LABELS,
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    check_known,
    check_labels_differ,
    counts_by_label,
    find_problem,
    lacks_label,
    names_of,
    read_labels,
)
from export.data.own.refusals import DataRefused
from export.data.own.tables import Table


def table(values: list[Any]) -> Table:
    """Make a table with one column, whose first row stands in line 2."""
    return Table("a.csv", {"label": values}, range(2, len(values) + 2), "line", {})


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["billing", "delivery", ""], SINGLE_LABEL),
        (["1", "0", "1"], SINGLE_LABEL),
        ([1, 5, 3, None], SINGLE_LABEL),
        ([True, False], SINGLE_LABEL),
        (["1", "two"], SINGLE_LABEL),
        ([["a"], ["a", "b"], []], MULTI_LABEL),
        (["a", "a|b", ""], MULTI_LABEL),
        (["0.5", "1", "2"], REGRESSION),
        ([0.25, 3], REGRESSION),
        ([1.0, math.nan, 2.0], SINGLE_LABEL),
        (["3,5", "4,25"], REGRESSION),
        (["nan", "1.5"], SINGLE_LABEL),
        ([str(number) for number in range(MAX_NUMERIC_LABELS)], SINGLE_LABEL),
        ([str(number) for number in range(MAX_NUMERIC_LABELS + 1)], REGRESSION),
    ],
)
def test_the_kind_of_problem_follows_from_the_values(values: list[Any], kind: str) -> None:
    """The reason names the column."""
    found = find_problem(values, "label")
    assert found.kind == kind
    assert "'label'" in found.reason


@pytest.mark.parametrize(
    ("kind", "values", "read"),
    [
        (SINGLE_LABEL, [" a ", 1, True, 2.5], ["a", "1", "true", "2.5"]),
        (MULTI_LABEL, ["a| b|a", "", ["c", 1], []], [["a", "b"], [], ["c", "1"], []]),
        (REGRESSION, ["1", " 2.5 ", 3], [1.0, 2.5, 3.0]),
    ],
)
def test_labels_are_read_as_they_are_written(kind: str, values: list[Any], read: list[Any]) -> None:
    """Spaces around them are none of the label's."""
    assert read_labels(table(values), "label", range(len(values)), kind) == read


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (REGRESSION, "high", "a.csv, line 3, column 'label': 'high' is not a number"),
        (REGRESSION, "3,5", "a.csv, line 3, column 'label': '3,5' is not a number, .*; decimals have a point"),
        (REGRESSION, "inf", "a.csv, line 3, column 'label': 'inf' is not a number"),
        (SINGLE_LABEL, ["a"], "a.csv, line 3, column 'label': .* is not one label"),
        (MULTI_LABEL, "a||b", r"a.csv, line 3, column 'label': 'a\|\|b' has an empty label"),
        (MULTI_LABEL, ["a", None], "a.csv, line 3, column 'label': .* has an empty label"),
    ],
)
def test_labels_of_another_kind_are_refused_with_their_place(kind: str, value: Any, message: str) -> None:
    """The first row is good."""
    good = {REGRESSION: 1.0, SINGLE_LABEL: "a", MULTI_LABEL: ["a"]}[kind]
    with pytest.raises(DataRefused, match=message):
        read_labels(table([good, value]), "label", [0, 1], kind)


def test_an_empty_set_of_labels_is_a_label() -> None:
    """An empty text is one only where several are wanted; null is never one."""
    assert not lacks_label("", MULTI_LABEL) and not lacks_label([], MULTI_LABEL)
    assert lacks_label("  ", SINGLE_LABEL) and lacks_label("", REGRESSION)
    assert lacks_label(math.nan, SINGLE_LABEL) and lacks_label(None, MULTI_LABEL) and not lacks_label(0, SINGLE_LABEL)


def test_numbers_are_sorted_by_value_and_texts_by_letters() -> None:
    """So that class numbers of star ratings follow the stars."""
    assert names_of(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert names_of(["b", "10", "9"]) == ["10", "9", "b"]


def test_a_label_of_a_held_out_row_that_training_lacks_is_refused() -> None:
    """It may be a slip of the pen."""
    with pytest.raises(
        DataRefused, match="line 3, .* no training row has the label 'biling'; the labels are 'billing'"
    ):
        check_known(table(["x", "y"]), "label", [0, 1], [["returns"], ["biling"]], {"returns", "billing"})


def test_one_label_leaves_nothing_to_decide() -> None:
    """Nor does none."""
    with pytest.raises(DataRefused, match="every row has the label 'a'"):
        check_labels_differ(["a", "a"], SINGLE_LABEL, "a.csv")
    with pytest.raises(DataRefused, match=r"every row has the number 2.5"):
        check_labels_differ([2.5, 2.5], REGRESSION, "a.csv")
    with pytest.raises(DataRefused, match="no row has any label"):
        check_labels_differ([[], []], MULTI_LABEL, "a.csv")
    check_labels_differ([["a"], []], MULTI_LABEL, "a.csv")
    check_labels_differ(["a", "b"], SINGLE_LABEL, "a.csv")


def test_rows_are_counted_by_label() -> None:
    """A label without rows is counted too."""
    assert counts_by_label(["a", "b"], [0, 0], SINGLE_LABEL) == {"a": 2, "b": 0}
    assert counts_by_label(["a", "b"], [[0, 1], [], [1]], MULTI_LABEL) == {"a": 1, "b": 2}
    assert counts_by_label(["score"], [1.5], REGRESSION) == {}
